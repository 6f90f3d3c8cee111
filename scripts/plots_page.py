"""The page into which `dvc plots show` draws, with all that it runs: `.dvc/plots.html` (DVC's `plots.html_template`).

DVC's own page loads Vega, Vega-Lite and Vega-Embed from a content network and stays empty without one. No small wheel
brings them: vl-convert-python is 33 MB, JupyterLab's copy is cut up for its own loader. So their published builds, 0.8 MB
under the BSD-3-Clause licence, stand in the page, whose policy lets a browser ask for nothing else. The versions are the
last ones of the series that DVC's plots are written for.

`python scripts/plots_page.py` writes the page anew, from npm's registry, checked against the hashes below.
"""

import base64
import hashlib
import io
import sys
import tarfile
from pathlib import Path

import requests

PAGE = Path(__file__).resolve().parents[1] / ".dvc" / "plots.html"
PACKAGES = {  # in the order in which they are loaded: (version, integrity as npm has it)
    "vega": (
        "5.33.0",
        "sha512-jNAGa7TxLojOpMMMrKMXXBos4K6AaLJbCgGDOw1YEkLRjUkh12pcf65J2lMSdEHjcEK47XXjKiOUVZ8L+MniBA==",
    ),
    "vega-lite": (
        "5.23.0",
        "sha512-l4J6+AWE3DIjvovEoHl2LdtCUkfm4zs8Xxx7INwZEAv+XVb6kR6vIN1gt3t2gN2gs/y4DYTs/RPoTeYAuEg6mA==",
    ),
    "vega-embed": (
        "6.29.0",
        "sha512-PmlshTLtLFLgWtF/b23T1OwX53AugJ9RZ3qPE2c01VFAbgt3/GSNI/etzA/GzdrkceXFma+FDHNXUppKuM0U6Q==",
    ),
}
# DVC puts its drawings where {plot_divs} stands. Vega compiles expressions: 'unsafe-eval'.
HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src 'self' data: blob:">
{refresh_tag}
<title>Curves of the study</title>
<style>
body { margin: 1rem; font-family: system-ui, sans-serif; background: #fff; color: #222; }
body > div { margin-bottom: 1.5rem; overflow-x: auto; }
table { border-spacing: 15px; }
</style>
"""
TAIL = """</head>
<body>
{plot_divs}
</body>
</html>
"""


def read_package(name: str, version: str, integrity: str) -> tuple[str, str]:
    """(built script, licence) of a package in npm's registry.

    Raises:
        ValueError: what came has another hash.
        requests.RequestException: nothing came.
    """
    answer = requests.get(f"https://registry.npmjs.org/{name}/-/{name}-{version}.tgz", timeout=60)
    answer.raise_for_status()
    found = "sha512-" + base64.b64encode(hashlib.sha512(answer.content).digest()).decode()
    if found != integrity:
        raise ValueError(f"{name} {version}: the package has the hash {found}, expected {integrity}")
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as package:
        texts = [package.extractfile(f"package/{file}").read() for file in (f"build/{name}.min.js", "LICENSE")]
    return tuple(text.decode("utf-8").strip() for text in texts)


def page_text() -> str:
    """The page's template, its scripts with their licences in it. Raises as ``read_package``."""
    parts = [HEAD]
    for name, (version, integrity) in PACKAGES.items():
        script, licence = read_package(name, version, integrity)
        script = script.partition("\n//# sourceMappingURL")[0]  # or a browser's tools would ask for the map
        if "</script" in script or "{plot_divs}" in script:
            raise ValueError(f"{name} {version}: cannot stand inside the page")
        parts.append(
            f"<!-- {name} {version}, https://www.npmjs.com/package/{name}\n\n{licence}\n-->\n<script>{script}</script>\n"
        )
    return "".join([*parts, TAIL])


if __name__ == "__main__":
    try:
        PAGE.write_text(page_text(), encoding="utf-8")
    except (ValueError, requests.RequestException) as error:
        sys.exit(str(error))
