"""What can be chosen: every setting with its type, default, meaning, unit and bounds, defined here and nowhere else.

Defaults are those of the default study. A stage of the study takes several of these classes as one section of
params.yaml (``rsvlm.study.settings``); its notebook's parameters cell and the files of parameters are written from them.
"""

from rsvlm.settings.captioners import (
    CapRetSettings,
    CapRetShape,
    CaptioningSettings,
    Combination,
    Generation,
    Prompting,
    RewardSettings,
    TaskSettings,
)
from rsvlm.settings.checks import (
    BATCH,
    IMAGES,
    LONGEST_LIST,
    LONGEST_PART,
    SEED,
    SIDE,
    WEIGHT,
    Precision,
    Settings,
    Within,
    bounds,
    closest_name,
    setting,
    shown,
    type_text,
)
from rsvlm.settings.encoders import (
    MOST_MEMBERS,
    AdaptSettings,
    Augmentation,
    EarthWindows,
    Encoding,
    LanguageSettings,
    Pooling,
)
from rsvlm.settings.machines import ClusterSettings, LocalWorkers
from rsvlm.settings.other_models import OtherModel, VlmLoraSettings, VlmSettings

__all__ = [
    "AdaptSettings",
    "Augmentation",
    "BATCH",
    "CapRetSettings",
    "CapRetShape",
    "CaptioningSettings",
    "ClusterSettings",
    "Combination",
    "EarthWindows",
    "Encoding",
    "Generation",
    "IMAGES",
    "LONGEST_LIST",
    "LONGEST_PART",
    "MOST_MEMBERS",
    "LanguageSettings",
    "LocalWorkers",
    "OtherModel",
    "Pooling",
    "Precision",
    "Prompting",
    "RewardSettings",
    "SEED",
    "SIDE",
    "Settings",
    "TaskSettings",
    "VlmLoraSettings",
    "VlmSettings",
    "WEIGHT",
    "Within",
    "bounds",
    "closest_name",
    "setting",
    "shown",
    "type_text",
]
