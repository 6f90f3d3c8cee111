"""Published figures as data, each with where it comes from and how sure it is.

``status`` says how a figure reached this table: "read" in the publication or its code, "second-hand" in another
publication's table, "recalled" and not verified since. ``kind`` keeps apart what must not be compared in one column:
"specialist" (trained or fine-tuned on that benchmark alone), "generalist" (one model for several benchmarks) and
"zero-shot"; which is which is this study's reading where a paper does not say so. Scales are normalised here: caption
metrics as fractions, CIDEr as pycocoevalcap gives it (3.55, not 355), recalls as fractions. Papers differ in metric
code, splits and tokenisation: a difference in the second decimal says nothing.
"""

from dataclasses import dataclass

CAPTION_METRICS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE_L", "CIDEr", "SPICE")
RECALLS = (
    "image_to_text_recall_at_1",
    "image_to_text_recall_at_5",
    "image_to_text_recall_at_10",
    "text_to_image_recall_at_1",
    "text_to_image_recall_at_5",
    "text_to_image_recall_at_10",
    "mean_recall",
)
STATUSES = ("read", "second-hand", "recalled")
KINDS = ("specialist", "generalist", "zero-shot")
TEST_IMAGES = {"ucm": 210, "sydney": 58, "rsicd": 1093, "nwpu": 3150, "rsitmd": 452}  # of the official splits
ALIASES = {"ucm_captions": "ucm", "sydney_captions": "sydney", "nwpu_captions": "nwpu"}


@dataclass(frozen=True)
class Published:
    """One model's figures on one benchmark, on this study's scale."""

    task: str  # "captions" or "retrieval"
    source: str
    model: str
    kind: str
    status: str
    values: dict[str, float]
    unit: str  # the publication's own scale
    variant: str = ""
    note: str = ""
    confirmed: tuple[str, ...] = ()  # metrics that a second source gives too, where the status is "recalled"

    def __post_init__(self) -> None:
        known = CAPTION_METRICS if self.task == "captions" else RECALLS
        if self.kind not in KINDS or self.status not in STATUSES or not set(self.values) <= set(known):
            raise ValueError(f"published figure of {self.model} on {self.source}: unknown kind, status or metric")

    def verified(self, metric: str) -> bool:
        """Whether the figure was read somewhere, and is not only recalled."""
        return metric in self.values and (self.status != "recalled" or metric in self.confirmed)

    @property
    def name(self) -> str:
        """The model with its variant, as tables show it."""
        return f"{self.model}, {self.variant}" if self.variant else self.model


def published_for(task: str, source: str) -> list[Published]:
    """The published figures for a source: specialists, generalists, zero-shot, each by CIDEr or mean recall.

    None for a source without a literature.
    """
    name = benchmark_name(source)
    main = "CIDEr" if task == "captions" else "mean_recall"
    rows = [row for row in PUBLISHED if row.task == task and row.source == name]
    return sorted(rows, key=lambda row: (KINDS.index(row.kind), -row.values.get(main, -1.0)))


def benchmark_name(source: str) -> str:
    """The name under which the literature knows a source."""
    return ALIASES.get(source.lower(), source.lower())


def _captions(
    source: str, model: str, kind: str, status: str, figures: str, unit: str = "x1", **more: str | tuple[str, ...]
) -> Published:
    """Figures in the order of CAPTION_METRICS, "-" where unknown; ``unit`` "x100": CIDEr is given times 100."""
    scale = 0.01 if unit == "x100" else 1.0
    pairs = zip(CAPTION_METRICS, figures.split())
    values = {metric: round(float(figure) * scale, 6) for metric, figure in pairs if figure != "-"}
    return Published("captions", source, model, kind, status, values, unit, **more)


def _retrieval(source: str, model: str, kind: str, figures: str, **more: str) -> Published:
    """Figures in percent in the order of RECALLS, or mean recall alone."""
    numbers = [round(float(figure) / 100, 6) for figure in figures.split()]
    names = RECALLS if len(numbers) == len(RECALLS) else RECALLS[-1:]
    return Published(
        "retrieval", source, model, kind, "read", dict(zip(names, numbers, strict=True)), "percent", **more
    )


RSCAPRET = "RS-CapRet 7B"
JOINT, TUNED = "trained on Cap-4", "fine-tuned"
PUBLISHED = (
    _captions("nwpu", RSCAPRET, "generalist", "recalled", ".871 .787 .717 .656 .436 .776 1.929 .311", variant=JOINT),
    _captions("nwpu", RSCAPRET, "specialist", "recalled", ".871 .786 .713 .650 .439 .775 1.919 .320", variant=TUNED),
    _captions("rsicd", RSCAPRET, "generalist", "recalled", ".720 .599 .506 .433 .370 .633 2.502 .474", variant=JOINT),
    _captions(
        "rsicd",
        RSCAPRET,
        "specialist",
        "recalled",
        ".741 .622 .529 .455 .376 .649 2.605 .484",
        variant=TUNED,
        note="CIDEr confirmed by a second source",
        confirmed=("CIDEr",),
    ),
    _captions("ucm", RSCAPRET, "generalist", "recalled", ".833 .760 .699 .645 .447 .786 3.429 .525", variant=JOINT),
    _captions("ucm", RSCAPRET, "specialist", "recalled", ".843 .779 .722 .670 .472 .817 3.548 .525", variant=TUNED),
    _captions("sydney", RSCAPRET, "specialist", "recalled", ".787 .700 .628 .564 .388 .707 2.392 .434", variant=TUNED),
    _captions("ucm", "RSGPT", "specialist", "read", "- - - - - - 333.23", "x100"),
    _captions("sydney", "RSGPT", "specialist", "read", "- - - - - - 273.08", "x100"),
    _captions("rsicd", "RSGPT", "specialist", "read", "- - - - - - 102.94", "x100"),
    _captions("ucm", "SkyEyeGPT", "generalist", "read", "- - - - - - 236.75", "x100"),
    _captions("sydney", "SkyEyeGPT", "generalist", "read", "- - - - - - 181.06", "x100"),
    _captions("rsicd", "SkyEyeGPT", "generalist", "read", "- - - - - - 83.65", "x100"),
    _captions("rsicd", "GeoDiT", "generalist", "second-hand", "- - - - - - 135.6", "x100"),
    _captions("ucm", "GeoDiT", "generalist", "second-hand", "- - - - - - 73.8", "x100"),
    _captions("sydney", "GeoDiT", "generalist", "second-hand", "- - - - - - 128.3", "x100"),
    _captions("nwpu", "EarthDial", "generalist", "second-hand", "- - - - - - 123.6", "x100"),
    _captions("rsicd", "BITA", "specialist", "recalled", "- - - - - - 304.5", "x100"),
    _captions("ucm", "BITA", "specialist", "recalled", "- - - - - - 384.5", "x100"),
    _captions("nwpu", "BITA", "specialist", "recalled", "- - - - - - 197.0", "x100"),
    _captions("rsicd", "MLCA-Net", "specialist", "read", ".750 .631 .538 .459"),
    _captions("ucm", "MLCA-Net", "specialist", "read", ".826 .770 .717 .668"),
    _captions("nwpu", "MLCA-Net", "specialist", "read", ".745 .624 .541 .478"),
    _captions("rsicd", "JTTS", "specialist", "read", ".789 .680 .589 .514"),
    _captions("ucm", "JTTS", "specialist", "read", ".870 .822 .779 .738"),
    _retrieval("rsicd", "CLIP ViT-B/32", "zero-shot", "15.74"),
    _retrieval("rsicd", "AMFMN", "specialist", "5.39 15.08 23.40 4.90 18.28 31.44 16.42"),
    _retrieval("rsicd", "RemoteCLIP ViT-B/32", "generalist", "17.02 37.97 51.51 13.71 37.11 54.25 35.26"),
    _retrieval("rsicd", "RemoteCLIP ViT-L/14", "generalist", "18.39 37.42 51.05 14.73 39.93 56.58 36.35"),
    _retrieval("rsicd", "GeoRSCLIP", "generalist", "38.87", variant="tuned on RET-2"),
    _retrieval("rsicd", "RSM-CLIP ViT-L/14", "generalist", "39.78"),
    _retrieval("rsicd", "DFIM", "generalist", "43.14"),
    _retrieval("rsitmd", "RemoteCLIP ViT-L/14", "generalist", "28.76 52.43 63.94 23.76 59.51 74.73 50.52"),
    _retrieval("rsitmd", "GeoRSCLIP", "generalist", "51.81", variant="tuned on RET-2"),
    _retrieval("rsitmd", "RSM-CLIP ViT-L/14", "generalist", "52.29"),
    _retrieval("rsitmd", "DFIM", "generalist", "55.01"),
    _retrieval("ucm", "CLIP ViT-B/32", "zero-shot", "33.13"),
    _retrieval("ucm", "AMFMN", "specialist", "16.67 45.71 68.57 12.86 53.24 79.43 46.08"),
    _retrieval("ucm", "RemoteCLIP ViT-B/32", "generalist", "20.48 59.85 83.33 18.67 61.52 94.29 56.36"),
    _retrieval("ucm", "RemoteCLIP ViT-L/14", "generalist", "19.05 54.29 80.95 17.71 62.19 93.90 54.68"),
    _retrieval("ucm", "FBCLM", "specialist", "28.57 63.81 82.86 27.33 72.67 94.38 61.60"),
)
