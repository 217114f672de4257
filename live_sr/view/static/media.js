// Earlier frames of the run: sliders, thumbnails, snapshot, movie.

export function start(page) {}
