"""Examples with boxes as a prepared data set of TensorFlow Datasets, without TensorFlow."""

import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mg_jax.errors import UserError
from mg_jax.example import Example


def write_tfds(
    examples: Iterable[Example],
    folder: str | Path,
    name: str,
    part: Callable[[Example], str] = lambda example: "train",
) -> Path:
    """Write FOLDER/NAME/1.0.0/ with ArrayRecord files, features.json and dataset_info.json.

    The features are those of tfds's VOC: image, image/filename, objects with label, bbox,
    is_difficult (crowd). part: the split of an example. name: lower case words joined by "_".
    Returns the folder: `tfds:NAME,data_dir=FOLDER` reads it. Raises UserError without the extra.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as e:
        raise UserError(f"tfds:{name}: needs TensorFlow Datasets: make setup EXTRAS=tfds") from e
    splits: dict[str, list[Example]] = {}
    for example in examples:
        splits.setdefault(part(example), []).append(example)
    regions = [r for rows in splits.values() for e in rows for r in (*e.objects, *e.crowd)]
    labels = sorted({r.label or "object" for r in regions})
    kinds = tfds.features

    class Builder(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        code_path = None  # its own way to find it needs a package that tfds does not ask for

        def _info(self) -> Any:
            parts = {
                "label": kinds.ClassLabel(names=labels),
                "bbox": kinds.BBoxFeature(),
                "is_difficult": np.bool_,
            }
            features = {
                "image": kinds.Image(shape=(None, None, 3)),
                "image/filename": kinds.Text(),
                "objects": kinds.Sequence(parts),
            }
            return tfds.core.DatasetInfo(builder=self, features=kinds.FeaturesDict(features))

        def _split_generators(self, manager: Any) -> dict[str, Any]:
            return {key: self._generate_examples(rows) for key, rows in splits.items()}

        def _generate_examples(self, rows: list[Example]) -> Any:
            for n, example in enumerate(rows):
                yield n, _row(example, tfds.features.BBox)

    Builder.name = name
    builder = Builder(data_dir=str(folder), file_format="array_record")
    builder.download_and_prepare()
    return Path(folder)


def _row(example: Example, box: Any) -> dict[str, Any]:
    picture = io.BytesIO()
    Image.fromarray(example.pixels()).save(picture, "PNG")
    picture.seek(0)
    objects = [
        {
            "label": region.label or "object",
            "bbox": box(
                ymin=region.box[1], xmin=region.box[0], ymax=region.box[3], xmax=region.box[2]
            ),
            "is_difficult": hard,
        }
        for hard, group in ((False, example.objects), (True, example.crowd))
        for region in group
    ]
    return {"image": picture, "image/filename": f"{example.id}.png", "objects": objects}
