"""Getting a source: checked, resumed, unpacked safely, helpful without a network. The server is this machine's own."""

import dataclasses
import hashlib
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rsvlm.data import catalogue as downloads
from rsvlm.data.__main__ import main
from rsvlm.data.catalogue import KNOWN, Download, DownloadError, fetch_file, get_source, unpack_safely
from rsvlm.files import read_json

CONTENT = bytes(range(256)) * 4000


@pytest.fixture
def server():
    """Serves ``files`` with byte ranges; ``cut_at`` ends an answer early; ``asked`` logs the ranges asked for.

    ``sends`` changes an answer: from (start, end, total, headers) to what is said and sent instead.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):  # the base class's name
            body = site.files.get(self.path)
            asked = self.headers.get("Range")
            site.asked.append(asked)
            if body is None:
                self.send_error(404)
                return
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
            if asked and start >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            headers = {"Content-Length": str(len(body) - start)}
            headers |= {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"} if asked else {}
            end = len(body) if site.cut_at is None else site.cut_at
            start, end = site.sends(start, end, headers) if asked or site.always else (start, end)
            self.send_response(206 if asked else 200)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body[start:end])

        def log_message(self, *arguments):
            pass

    site = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site.files, site.asked, site.cut_at = {"/a.bin": CONTENT}, [], None
    site.sends, site.always = (lambda start, end, headers: (start, end)), False
    site.url = f"http://127.0.0.1:{site.server_port}"
    threading.Thread(target=site.serve_forever, daemon=True).start()
    yield site
    site.shutdown()
    site.server_close()


def sha(content):
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def archive_of(path, **entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in entries.items():
            packed.writestr(name.replace("__", "/"), content)
    return path


def test_a_broken_download_goes_on(server, tmp_path):
    file = tmp_path / "a.bin"
    server.cut_at = 300_000
    with pytest.raises(downloads.requests.RequestException):
        fetch_file(f"{server.url}/a.bin", file, sha(CONTENT), print)
    assert not file.exists() and 0 < (tmp_path / ".a.bin.part").stat().st_size <= 300_000
    server.cut_at = None
    fetch_file(f"{server.url}/a.bin", file, sha(CONTENT), print)
    assert file.read_bytes() == CONTENT and server.asked[-1].startswith("bytes=")
    asked = len(server.asked)
    fetch_file(f"{server.url}/a.bin", file, sha(CONTENT), print)
    assert len(server.asked) == asked, "a whole file is not fetched again"


def test_a_download_that_was_whole_but_never_named(server, tmp_path):
    (tmp_path / ".a.bin.part").write_bytes(CONTENT)
    fetch_file(f"{server.url}/a.bin", tmp_path / "a.bin", f"md5:{hashlib.md5(CONTENT).hexdigest()}", print)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_wrong_checksum_is_kept_aside(server, tmp_path):
    with pytest.raises(DownloadError, match=r"does not have the checksum .*a\.bin\.wrong"):
        fetch_file(f"{server.url}/a.bin", tmp_path / "a.bin", sha(b"other"), print)
    assert (tmp_path / "a.bin.wrong").is_file() and not (tmp_path / "a.bin").exists()
    (tmp_path / "a.bin").write_bytes(b"changed by hand")
    with pytest.raises(DownloadError, match="is there, but its checksum"):
        fetch_file(f"{server.url}/a.bin", tmp_path / "a.bin", sha(CONTENT), print)


def test_a_source_without_a_published_checksum_records_its_own(server, tmp_path, monkeypatch):
    packed = archive_of(tmp_path / "p.zip", top__imgs__1="one", top__imgs__2="two").read_bytes()
    server.files["/p.zip"] = packed
    download = Download(f"{server.url}/p.zip", "p.zip", unpack_to="pictures", strip="top")
    monkeypatch.setitem(KNOWN, "rsicd", dataclasses.replace(KNOWN["rsicd"], downloads=(download,)))
    said = []
    folder = get_source("rsicd", tmp_path / "raw", said.append)
    assert folder == tmp_path / "raw" / "rsicd" and (folder / "pictures/imgs/2").read_text() == "two"
    record = read_json(tmp_path / "raw" / "rsicd.downloads.json")["p.zip"]
    assert record["checksum"] == sha(packed) and record["pinned_by"] == "the first download here"
    assert any("no published checksum is known" in line for line in said) and any("by hand" in line for line in said)
    (folder / "p.zip").unlink()
    server.files["/p.zip"] = packed + b"x"
    with pytest.raises(DownloadError, match="does not have the checksum"):
        get_source("rsicd", tmp_path / "raw", said.append)


def test_a_page_that_comes_instead_of_an_archive_is_not_pinned(server, tmp_path, monkeypatch):
    """The first download is what later ones must equal: a quota's page must not become that."""
    server.files["/p.zip"] = b"<html>Quota exceeded</html>"
    download = Download(f"{server.url}/p.zip", "p.zip", unpack_to=".")
    monkeypatch.setitem(KNOWN, "rsicd", dataclasses.replace(KNOWN["rsicd"], downloads=(download,)))
    with pytest.raises(DownloadError, match=r"p\.zip: not a whole ZIP archive.*remove it and fetch it again"):
        get_source("rsicd", tmp_path / "raw", print)
    assert not (tmp_path / "raw" / "rsicd.downloads.json").exists()
    (tmp_path / "raw/rsicd/p.zip").unlink()
    server.files["/p.zip"] = archive_of(tmp_path / "p.zip", one="one").read_bytes()
    assert (get_source("rsicd", tmp_path / "raw", print) / "one").read_text() == "one"
    assert "sha256" in read_json(tmp_path / "raw" / "rsicd.downloads.json")["p.zip"]["checksum"]


def test_a_web_page_instead_of_a_file_is_refused(server, tmp_path):
    server.always = True
    server.sends = lambda start, end, headers: (
        headers.update({"Content-Type": "text/html; charset=utf-8"}) or (start, end)
    )
    with pytest.raises(DownloadError, match=r"a web page came instead of a\.bin.*try again later"):
        fetch_file(f"{server.url}/a.bin", tmp_path / "a.bin", None, print)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("checksum", [None, sha(CONTENT)])
@pytest.mark.parametrize(
    "told",
    [
        f"bytes 0-{len(CONTENT) - 1}/{len(CONTENT)}",  # from the start, behind what is there
        f"bytes 99-{len(CONTENT) - 1}/{len(CONTENT)}",
        "nonsense",
    ],
)
def test_what_does_not_go_on_where_it_was_asked_to_is_fetched_anew(server, tmp_path, checksum, told):
    """Behind the bytes that were there, other bytes of the file would make a longer file."""
    (tmp_path / ".a.bin.part").write_bytes(CONTENT[:5000])
    server.sends = lambda start, end, headers: (
        headers.update({"Content-Range": told, "Content-Length": str(len(CONTENT))}) or (0, len(CONTENT))
    )
    fetch_file(f"{server.url}/a.bin", tmp_path / "a.bin", checksum, print)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT and server.asked == ["bytes=5000-", None]


def test_more_than_the_whole_file_is_not_taken_for_it(server, tmp_path):
    (tmp_path / ".a.bin.part").write_bytes(CONTENT + b"x" * 5000)
    fetch_file(f"{server.url}/a.bin", tmp_path / "a.bin", None, print)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_body_shorter_than_promised_is_refused(server, tmp_path):
    """The length of this answer is right, the file is longer."""
    (tmp_path / ".a.bin.part").write_bytes(CONTENT[:5000])
    server.sends = lambda start, end, headers: headers.update({"Content-Length": "1000"}) or (start, start + 1000)
    with pytest.raises(DownloadError, match=r"6,000 bytes came, 1,024,000 were promised; run this again"):
        fetch_file(f"{server.url}/a.bin", tmp_path / "a.bin", None, print)
    assert not (tmp_path / "a.bin").exists() and (tmp_path / ".a.bin.part").read_bytes() == CONTENT[:6000]


def test_without_a_network_it_says_what_to_put_where(tmp_path, monkeypatch, capsys):
    def offline(*arguments, **options):
        raise downloads.requests.ConnectionError("no route")

    monkeypatch.setattr(downloads.requests, "get", offline)
    assert main(["get", "ucm", "--raw", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "could not be fetched (no route)" in said and "UCMerced_LandUse.zip" in said
    assert str(tmp_path / "ucm_captions") in said and "dataset.json" in said
    assert main(["get", "sydney", "--raw", str(tmp_path)]) == 0, "nothing to fetch: it says what to bring"
    assert "by hand from" in capsys.readouterr().out
    assert main(["get", "ucn"]) == 1 and "did you mean 'ucm'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../out", "leads out"),
        ("/etc/x", "leads out"),
        ("a/../../x", "leads out"),
        ("C:/x", "leads out"),
        ("a\\..\\x", "leads out"),
    ],
)
def test_archives_cannot_write_outside(tmp_path, name, message):
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as packed:
        packed.writestr("good.txt", "x")
        packed.writestr(name, "x")
    with pytest.raises(DownloadError, match=message):
        unpack_safely(tmp_path / "p.zip", tmp_path / "into")
    assert not (tmp_path / "into").exists(), "nothing is written before all is checked"


def test_links_bombs_and_damaged_archives(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as packed:
        link = zipfile.ZipInfo("link")
        link.external_attr = 0o120777 << 16
        packed.writestr(link, "/etc/passwd")
    with pytest.raises(DownloadError, match="is a link"):
        unpack_safely(tmp_path / "link.zip", tmp_path / "into")
    archive_of(tmp_path / "bomb.zip", zeros=b"\0" * 50_000_000)
    with pytest.raises(DownloadError, match="200-fold"):
        unpack_safely(tmp_path / "bomb.zip", tmp_path / "into")
    monkeypatch.setattr(downloads, "MOST_FILES", 2)
    with pytest.raises(DownloadError, match="unpacks to 3 files"):
        unpack_safely(archive_of(tmp_path / "many.zip", a="x", b="x", c="x"), tmp_path / "into")
    (tmp_path / "cut.zip").write_bytes((tmp_path / "many.zip").read_bytes()[:-10])
    with pytest.raises(DownloadError, match="not a whole ZIP archive"):
        unpack_safely(tmp_path / "cut.zip", tmp_path / "into")
    assert not (tmp_path / "into").exists()


@pytest.mark.parametrize("name", ["top//etc/x", "top/C:/x", "top/../x", "top//"])
def test_a_name_without_its_leading_folder_is_checked_too(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as packed:
        packed.writestr(zipfile.ZipInfo("top/good"), "x")
        packed.writestr(zipfile.ZipInfo(name), "x")
    if name.endswith("/"):  # a folder
        assert unpack_safely(tmp_path / "p.zip", tmp_path / "into", "top") == 1
        return
    with pytest.raises(DownloadError, match="leads out of the folder; nothing was unpacked"):
        unpack_safely(tmp_path / "p.zip", tmp_path / "into", "top")
    assert not (tmp_path / "into").exists()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([".", "a"], "the entry '\\.' has no name that a file can have: it is empty"),
        (
            ["a\x01b"],
            r"the entry 'a\\x01b' has no name that a file can have: a control character \(U\+0001\) at place 2",
        ),
        (["a\nb"], r"has no name that a file can have: a line break"),
        (["a" * 300], "has a name of more than 240 bytes"),
        (["\u00e9" * 121], "has a name of more than 240 bytes"),
        (["a", "a/b"], "'a' is a file, and 'a/b' needs a folder there"),
        (["a/b/c", "a"], "'a' is a file, and 'a/b/c' needs a folder there"),
        (["a/b", "a//b"], "the entry 'a//b' stands there twice"),
    ],
)
def test_names_that_cannot_be_files(tmp_path, names, message):
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as packed:
        for name in ("good", *names):
            packed.writestr(zipfile.ZipInfo(name), "x")
    with pytest.raises(DownloadError, match=rf"p\.zip: .*{message}.*; nothing was unpacked"):
        unpack_safely(tmp_path / "p.zip", tmp_path / "into")
    assert not (tmp_path / "into").exists()


def test_encrypted_and_oddly_packed_archives(tmp_path):
    whole = archive_of(tmp_path / "p.zip", a="one").read_bytes()
    listed = whole.index(b"PK\1\2")  # the entry in the archive's list: flags at 8, method at 10
    for place, value, message in ((8, 1, "'a' is encrypted; unpack"), (10, 99, "'a' is packed by method 99, which")):
        changed = bytearray(whole)
        changed[listed + place] = value
        (tmp_path / "p.zip").write_bytes(changed)
        with pytest.raises(DownloadError, match=message):
            unpack_safely(tmp_path / "p.zip", tmp_path / "into")
    assert not (tmp_path / "into").exists()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_entry_leaves_no_file(tmp_path, method):
    with zipfile.ZipFile(tmp_path / "p.zip", "w", method) as packed:
        packed.writestr("a", bytes(range(256)) * 20)
    damaged = bytearray((tmp_path / "p.zip").read_bytes())
    damaged[45:60] = b"\xff" * 15
    (tmp_path / "p.zip").write_bytes(damaged)
    with pytest.raises(DownloadError, match=r"p\.zip: not a whole ZIP archive.*remove it and fetch it again"):
        unpack_safely(tmp_path / "p.zip", tmp_path / "into")
    assert not [path for path in (tmp_path / "into").rglob("*") if path.is_file()]


def test_many_small_entries_may_not_grow_together(tmp_path):
    """Each is below what an entry may grow to; all are 60 MB out of less than 100 KB."""
    archive_of(tmp_path / "bomb.zip", **{f"e{number}": b"\0" * 999_000 for number in range(60)})
    assert (tmp_path / "bomb.zip").stat().st_size < 100_000
    with pytest.raises(DownloadError, match=r"grow 200-fold, to 59,940,000; nothing was unpacked"):
        unpack_safely(tmp_path / "bomb.zip", tmp_path / "into")
    assert not (tmp_path / "into").exists()


def test_a_place_that_is_taken_is_named(tmp_path):
    archive = archive_of(tmp_path / "p.zip", a__b="x")
    (tmp_path / "into").mkdir()
    (tmp_path / "into" / "a").write_text("a file where a folder must be")
    with pytest.raises(DownloadError, match=r"p\.zip: cannot be unpacked: .*into/a.*mend that"):
        unpack_safely(archive, tmp_path / "into")


def test_unpacking_again_keeps_what_is_there(tmp_path):
    archive = archive_of(tmp_path / "p.zip", a="one", b__c="two")
    assert unpack_safely(archive, tmp_path / "into") == 2
    first = (tmp_path / "into/a").stat().st_mtime_ns
    assert unpack_safely(archive, tmp_path / "into") == 2 and (tmp_path / "into/a").stat().st_mtime_ns == first


def test_pinned_checksums_name_who_pins_them(capsys):
    for known in KNOWN.values():
        for download in known.downloads:
            assert (download.checksum is None) == (download.pinned_by is None)
            assert download.url.startswith("https://")
    assert main(["list"]) == 0 and "RSITMD: 4,743 images" in capsys.readouterr().out
