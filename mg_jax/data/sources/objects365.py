"""Objects365 v2: a json in COCO's form and pictures in patch folders.

    zhiyuan_objv2_train.json     or ..._val.json
    train/patch0/objects365_v1_....jpg ... train/patch50/...     val/patch0/... val/patch43/...

`file_name` is `images/v1/patch8/objects365_v1_00420917.jpg`; the archives unpack to `patch8/`.
Annotations have `isfake` (a picture of the thing) and `isreflected` (seen in a mirror) besides
COCO's keys: both count as objects. A few pictures of the json are in no archive
(`patch6/objects365_v1_00320532.jpg`, ...): they are counted like any missing file.
"""

from typing import Any

from mg_jax.data.sources.coco import CocoSource


class Objects365Source(CocoSource):
    """Pictures with the boxes of Objects365, read as `CocoSource` does.

    images: the folder that holds the patch folders. A picture is looked for as
    images/v1/patch8/NAME, as patch8/NAME and as NAME.
    """

    kind = "Objects365"

    def places(self, row: dict[str, Any]) -> tuple[str, ...]:
        """The whole name, the last folder and the name, the name alone."""
        whole = super().places(row)[0]
        parts = whole.split("/")
        return tuple(dict.fromkeys((whole, "/".join(parts[-2:]), parts[-1])))
