"""What the page calls the networks, and what the names mean."""

from collections.abc import Mapping

from examples.experiments.page.reading import Record

AS_IS, LARGE = "as is", "600 pixels"
DUAL, SAME_PIXELS, LARGER = "S1L0 dual path", "pyramid, 300 pixels enlarged", "pyramid, 600 pixels"
SPLIT, SMALL_BOXES = "split", "as is, S1L0's boxes"

# Rows of the experiments that train, by what the page calls them; the records have the names of the commands.
TUNED = {"base": AS_IS, "S1L0-Split": SPLIT, "S1L0-Concat": "concat", "Size600": LARGE}
OF_SETS = {
    "SSDMnetv1": AS_IS,
    "SSDMnetv1-Anchor10-45": SMALL_BOXES,
    "SSDMnetv1-S1L0": "S1L0",
    "SSDMnetv1-S1L0-DualPath19-10-S": SPLIT,
    "SSDMnetv1-Size600": LARGE,
}

MEANINGS: Mapping[str, str] = {
    f"{AS_IS} (`base`, `SSDMnetv1`)": "the untouched network on 300x300 pixels",
    "S1L0, S1L4, S1L6, S2L4-6": '`eliminate(net, "S1L0")`: one stride removed at layer 0 (4, 6), or two at layers 4 '
    "and 6; every map from there on is twice (four times) as fine",
    "S1L12 dilated": "the last stride removed with `dilate=True`: more features between the trained ones",
    f"{LARGE} (`Size600`)": "the untouched network on the photographs (of COCO mostly 640x480) stretched to 600x600, "
    "not shrunk to 300x300; it costs as much as S1L0",
    "... dual path": "nothing trained: `dual_path`, all boxes of the network as it is, and those of the finer path "
    "below a bound on their side, merged (`examples/training_free.py`)",
    f"{SPLIT} (`S1L0-Split`, `...-DualPath19-10-S`)": "`dual_path` with one set of predictors: the maps for "
    "small objects from the finer path, the others from the original",
    LARGER: "the untouched network twice, on 300 and on 600 pixels, boxes merged as for a dual path",
    SAME_PIXELS: "the same, but the larger photograph is enlarged from 300 pixels, and shows no more than those",
    f"{SMALL_BOXES} (`...-Anchor10-45`)": "the untouched network with anchors of the sizes that S1L0 has, from 10 "
    "pixels instead of 45",
    "cpu-fp32-batch1": "device, precision and images at once",
}


def by_row(found: Mapping[str, Record]) -> dict[str, Record]:
    """Trained rows of the first seed, by the name of the command."""
    trained = [r for r in found.values() if r["settings"]["steps"]]
    return {r["row"]: r for r in trained if r["seed"] == min(r["seed"] for r in trained)}


def named(row: str) -> str:
    return {**TUNED, **OF_SETS}.get(row, row)
