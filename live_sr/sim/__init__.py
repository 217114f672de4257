"""A microscope without a microscope: specimens, and a scan of them as pymmcore-plus devices."""
