from __future__ import annotations

import resource
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from live_sr.client import journal as journals
from live_sr.client.journal import End, Entry, Header, Journal, Lookup, journal_path
from live_sr.errors import StoreError

HEADER = Header(
    format=1, session="s1", model="m", model_sha256="ab" * 32, scale=4, started="2030-01-01T00:00:00+00:00"
)


def saved(seq: int, t: int | None = None) -> Entry:
    return Entry(seq=seq, index={"t": seq if t is None else t}, status="saved", latency_ms=12.5, raw_crc32=7)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.sr.journal.jsonl"


def write(path: Path, *lines: Header | Entry | End) -> None:
    journal = Journal(path, create=not path.exists())
    for line in lines:
        journal.append(line)
    journal.close()


@pytest.mark.parametrize(
    ("volume", "name"),
    [
        ("run1.sr.ome.zarr", "run1.sr.journal.jsonl"),
        ("run1.zarr", "run1.journal.jsonl"),
        ("run.1", "run.1.journal.jsonl"),
    ],
)
def test_the_journal_lies_beside_its_volume(tmp_path: Path, volume: str, name: str) -> None:
    assert journal_path(tmp_path / volume) == tmp_path / name


def test_what_was_appended_is_read(path: Path) -> None:
    failed = Entry(
        seq=1,
        index={"t": 0, "p": 1, "c": 2},
        where={"t": 1},
        n=1,
        status="failed",
        deferred=True,
        reason="no such frame",
    )
    end = End("incomplete", {"acquired": 2, "failed": 1})
    write(path, HEADER, saved(0), failed, end)

    contents = journals.read(path)

    assert contents.header == HEADER
    assert contents.frames == {0: saved(0), 1: failed}
    assert contents.frames[1].place == {"t": 1}
    assert contents.end == end
    assert contents.damaged_lines == 0


def test_every_line_is_one_line_of_json_with_the_facts_of_a_frame(path: Path) -> None:
    write(path, HEADER, saved(0))
    assert path.read_text().splitlines()[1] == (
        '{"type":"frame","seq":0,"index":{"t":0},"status":"saved","latency_ms":12.5,"raw_crc32":7}'
    )


def test_a_line_can_be_read_as_soon_as_it_was_appended(path: Path) -> None:
    journal = Journal(path, create=True)
    journal.append(saved(0))
    assert list(journals.read(path).frames) == [0]
    journal.close()


def test_a_later_line_for_a_frame_wins(path: Path) -> None:
    write(path, HEADER, Entry(seq=3, index={"t": 3}, status="failed", reason="timeout"), saved(4), saved(3))
    frames = journals.read(path).frames
    assert frames[3].status == "saved"
    assert list(frames) == [4, 3]


def test_a_frame_after_the_end_reopens_the_run(path: Path) -> None:
    write(path, HEADER, saved(0), End("incomplete", {}))
    write(path, HEADER)
    assert journals.read(path).end is None
    write(path, saved(1), End("complete", {"saved": 2}))
    assert journals.read(path).end == End("complete", {"saved": 2})


def test_the_first_header_is_kept(path: Path) -> None:
    write(path, HEADER)
    write(path, Header(format=1, session="s2", model="m", model_sha256="cd", scale=4, started="later"))
    header = journals.read(path).header
    assert header is not None
    assert header.session == "s1"


@pytest.mark.parametrize("torn", range(1, 40, 3))
def test_half_a_line_left_by_a_kill_costs_that_line_only(path: Path, torn: int) -> None:
    write(path, HEADER, saved(0), saved(1))
    path.write_bytes(path.read_bytes()[:-torn])

    contents = journals.read(path)
    assert list(contents.frames) == ([0, 1] if torn == 1 else [0])
    assert contents.damaged_lines == (0 if torn == 1 else 1)

    write(path, saved(2))
    assert list(journals.read(path).frames) == ([0, 1, 2] if torn == 1 else [0, 2])


@pytest.mark.skipif(sys.platform == "win32", reason="no limit of the file size there")
def test_a_line_cut_short_by_a_full_disk_does_not_harm_the_next(path: Path) -> None:
    journal = Journal(path, create=True)
    journal.append(HEADER)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, hard))
    try:
        with pytest.raises(StoreError, match="cannot be written"):
            journal.append(saved(0))
        with pytest.raises(StoreError, match="cannot be written"):
            journal.append(saved(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    journal.append(saved(2))
    journal.close()

    contents = journals.read(path)
    assert list(contents.frames) == [2]
    assert contents.damaged_lines == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_an_error_that_names_the_journal() -> None:
    journal = Journal("/dev/full")
    with pytest.raises(StoreError, match=r"/dev/full cannot be written: No space left"):
        journal.append(HEADER)
    with pytest.raises(StoreError, match="cannot be synced"):
        journal.close()


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\xff\xfe",
        b"[" * 100_000,
        b'{"type":"frame","seq":-1,"index":{},"status":"saved"}',
        b'{"type":"frame","seq":0,"index":{"t":99999999999999999999},"status":"saved"}',
        b'{"type":"frame","seq":0,"index":{"t":0},"status":"fine"}',
        b'{"type":"spy"}',
        b'{"type":"frame","seq":0,"x":' + b"[" * 50_000,
        b"x" * (3 << 20),
    ],
    ids=["bytes", "deep", "negative", "huge number", "unknown status", "unknown type", "deep field", "3 MiB"],
)
def test_a_garbage_line_is_counted_and_passed_over(path: Path, garbage: bytes) -> None:
    write(path, HEADER, saved(0))
    with path.open("ab") as file:
        file.write(garbage + b"\n")
    write(path, saved(1))
    contents = journals.read(path)
    assert list(contents.frames) == [0, 1]
    assert contents.damaged_lines >= 1


LINES = st.one_of(
    st.binary(max_size=60),
    st.sampled_from(
        [
            b'{"type":"header","format":1,"session":"s","model":"m","model_sha256":"","scale":2,"started":""}',
            b'{"type":"frame","seq":1,"index":{"t":1},"status":"saved"}',
            b'{"type":"frame","seq":1,"index":{"t":"1"},"status":"saved"}',
            b'{"type":"end","status":"complete","counts":{}}',
            b'{"type":"header","format":2}',
            b"",
        ]
    ),
)


@given(st.lists(LINES, max_size=12), st.binary(max_size=20))
def test_any_bytes_are_contents_or_a_store_error(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], tail: bytes
) -> None:
    path = tmp_path_factory.mktemp("any") / "x.jsonl"
    path.write_bytes(b"\n".join(lines) + tail)
    try:
        contents = journals.read(path)
    except StoreError:
        return
    assert set(contents.frames) <= {1}
    assert contents.damaged_lines <= path.read_bytes().count(b"\n") + 1


def test_a_file_without_any_good_line_is_no_journal(path: Path) -> None:
    path.write_bytes(b"these are my notes\nnothing else\n")
    with pytest.raises(StoreError, match="is not a journal"):
        journals.read(path)


def test_a_newer_format_is_refused_with_the_next_step(path: Path) -> None:
    write(path, Header(format=2, session="s", model="m", model_sha256="", scale=2, started=""))
    with pytest.raises(StoreError, match="update live-sr"):
        journals.read(path)


def test_a_missing_journal_and_an_existing_one_are_refused(path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be read"):
        journals.read(path)
    with pytest.raises(StoreError, match="cannot be opened"):
        Journal(path)
    write(path, HEADER)
    with pytest.raises(StoreError, match="exists: choose another name"):
        Journal(path, create=True)


@pytest.mark.skipif(sys.platform == "win32", reason="no such locks there")
def test_a_journal_has_one_writer_at_a_time(path: Path) -> None:
    journal = Journal(path, create=True)
    with pytest.raises(StoreError, match="being written already"):
        Journal(path)
    journal.close()
    Journal(path).close()


def test_closing_again_does_nothing_and_a_closed_journal_takes_no_line(path: Path) -> None:
    journal = Journal(path, create=True)
    journal.close()
    journal.close()
    with pytest.raises(StoreError, match="is closed"):
        journal.append(HEADER)


def test_a_lookup_finds_the_latest_line_of_a_place_while_the_journal_grows(path: Path) -> None:
    moved = Entry(seq=1, index={"t": 0, "c": 1}, where={"t": 1}, status="saved")
    write(path, HEADER, saved(0), moved)
    lookup = Lookup(path)
    assert lookup.find({"t": 0}) == saved(0)
    assert lookup.header == HEADER
    assert lookup.find({"t": 1}) == moved
    assert lookup.find({"t": 2}) is None
    again = Entry(seq=7, index={"t": 0}, status="failed", reason="lost")
    write(path, again, saved(2))
    assert lookup.find({"t": 0}) == again
    assert lookup.find({"t": 2}) == saved(2)


def test_a_lookup_waits_for_the_end_of_a_line_and_skips_damage(path: Path) -> None:
    write(path, HEADER)
    lookup = Lookup(path)
    line = b'{"type":"frame","seq":3,"index":{"t":3},"status":"saved"}'
    with path.open("ab") as file:
        file.write(b"damage\n" + line[:20])
    assert lookup.find({"t": 3}) is None
    with path.open("ab") as file:
        file.write(line[20:] + b"\n")
    found = lookup.find({"t": 3})
    assert found is not None
    assert found.seq == 3


def test_a_lookup_without_a_journal_is_an_error(path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be read"):
        Lookup(path).find({"t": 0})
