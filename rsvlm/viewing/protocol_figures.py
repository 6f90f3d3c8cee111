"""How far the protocol alone moves a model's recall: a table and a figure of the named protocols."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rsvlm.scoring.published import RECALLS
from rsvlm.scoring.retrieval_study import PROTOCOLS, protocol_spread
from rsvlm.scoring.runs import METHODS, named
from rsvlm.viewing.figures import label_recalls
from rsvlm.viewing.plots import MARKERS, figure, series_colours


def protocol_table(metrics: dict) -> pd.DataFrame:
    """The recalls in percent under each protocol, right answers by image, one row a source, protocol and method.

    Beside them the mean recall's interval, and by how many points it differs from that under RemoteCLIP's protocol.
    """
    keys = ["source", "protocol", "method"]
    spread = protocol_spread(metrics)
    shown = spread[["source", "protocol"]].assign(method=[named(METHODS, method).name for method in spread["method"]])
    shown[list(RECALLS)] = (100 * spread[list(RECALLS)]).round(1)
    shown["95 % interval"] = [
        "" if np.isnan(low) else f"{100 * low:.1f} to {100 * high:.1f}"
        for low, high in zip(spread["low"], spread["high"], strict=True)
    ]
    shown["against remoteclip"] = (100 * spread["difference"]).round(1)
    order = {name: place for place, name in enumerate(PROTOCOLS)}
    by = shown.assign(place=shown["protocol"].map(order)).sort_values(["source", "place"], kind="stable")
    return by.drop(columns="place").set_index(keys)


def protocol_figure(metrics: dict, source: str) -> Figure:
    """Mean recall under each protocol, one line a protocol, a dot with its 95 % interval for each method.

    A protocol that lets the other test queries speak is marked as transductive.

    Args:
        metrics: what METRICS/score_retrieval.json holds.
        source: the source to draw.
    """
    spread = protocol_spread(metrics)
    spread = spread[spread["source"] == source]
    if len(spread) == 0:
        raise ValueError(f"no protocol was scored for the source {source!r}")
    protocols, methods = list(dict.fromkeys(spread["protocol"])), list(dict.fromkeys(spread["method"]))
    heights = {name: len(protocols) - 1 - place for place, name in enumerate(protocols)}
    colours = series_colours(methods)
    drawn, axes = figure(7.2, 1.4 + 0.55 * len(protocols))
    for number, method in enumerate(methods):
        own = spread[spread["method"] == method]
        shift = 0.6 * (0.5 - (number + 0.5) / len(methods))
        below, above = own["mean_recall"] - own["low"], own["high"] - own["mean_recall"]
        axes.errorbar(
            own["mean_recall"],
            own["protocol"].map(heights) + shift,
            xerr=[below.clip(lower=0), above.clip(lower=0)],
            fmt=MARKERS[number % len(MARKERS)],
            color=colours[method],
            label=named(METHODS, method).name,
            capsize=2.5,
            elinewidth=1.4,
            linestyle="none",
        )
    marks = dict(zip(spread["protocol"], spread["transductive"], strict=True))
    axes.set_yticks(list(heights.values()), [name + ("\n(transductive)" if marks[name] else "") for name in protocols])
    axes.set_ylim(-0.6, len(protocols) - 0.4)
    label_recalls(axes, f"{source}: mean recall by protocol")
    return drawn
