// What the operator may change, and files of one's own.

export function start(page) {}
