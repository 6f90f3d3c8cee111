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
    """Serves ``files`` with byte ranges; ``cut_at`` ends an answer early; ``asked`` logs the ranges asked for."""

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
                self.send_error(416)
                return
            self.send_response(206 if asked else 200)
            self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            end = len(body) if site.cut_at is None else site.cut_at
            self.wfile.write(body[start:end])

        def log_message(self, *arguments):
            pass

    site = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site.files, site.asked, site.cut_at = {"/a.bin": CONTENT}, [], None
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
