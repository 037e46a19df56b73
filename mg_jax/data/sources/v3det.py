"""V3Det: a json in COCO's form and pictures in a folder for each category.

    annotations/v3det_2023_v1_train.json     or v3det_2023_v1_val.json
    images/a00000066/NAME.jpg, images/n07745046/NAME.jpg, ...

`file_name` is `images/n07745046/21_371_29405651261_633d076053_c.jpg`, from the folder of the data
set. Categories have `name_zh`, `cat_info`, `cat_info_gpt` and `novel` besides `id` and `name`;
they are passed over, as is the category tree.
"""

from typing import Any

from mg_jax.data.sources.coco import CocoSource


class V3DetSource(CocoSource):
    """Pictures with the boxes of V3Det, read as `CocoSource` does.

    images: the folder of the data set, or the folder `images` in it.
    """

    kind = "V3Det"
    exhaustive = False

    def places(self, row: dict[str, Any]) -> tuple[str, ...]:
        """The name, and the name without `images/`."""
        name = super().places(row)[0]
        short = name.removeprefix("images/")
        return (name,) if short == name else (name, short)
