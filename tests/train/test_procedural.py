"""Specimens are rendered once, always the same ones, and kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from live_sr.train.procedural import Procedural, render_pool


def test_rendered_images_are_reproducible_and_kept(tmp_path: Path) -> None:
    settings = Procedural(images=2, size=48, share=1.0)
    first = render_pool(settings, seed=3, cache=tmp_path)
    (kept,) = tmp_path.iterdir()
    before = kept.stat().st_mtime_ns
    again, fresh = render_pool(settings, seed=3, cache=tmp_path), render_pool(settings, seed=3)
    assert kept.stat().st_mtime_ns == before
    np.testing.assert_array_equal(first.images, again.images)
    np.testing.assert_array_equal(first.images, fresh.images)
    assert not np.array_equal(first.images[0], first.images[1])
    other = render_pool(settings, seed=4, cache=tmp_path)
    assert not np.array_equal(first.images[0], other.images[0])
