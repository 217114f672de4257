"""The inference server: one socket, a bounded mailbox, one warm model."""
