"""Files from the net, each checked by a sha256 that its publisher's other users rely on, too."""

from __future__ import annotations

import contextlib
from pathlib import Path

from spiritlevel.data.cache import no_room
from spiritlevel.errors import DataError, require
from spiritlevel.files import cache_folder

__all__ = ["download"]

_SECONDS = 30
"""Without a byte after which a server counts as silent."""


def download(url: str, sha256: str, *, folder: str) -> Path:
    """The file of this address under `folder` in the cache; fetched where it is not there whole.

    What does not match is not kept. Raises DataError and MissingExtra.
    """
    pooch = require("pooch", extra="study")
    place = cache_folder() / "downloads" / folder
    name = url.rpartition("/")[2]
    try:
        return Path(
            pooch.retrieve(
                url,
                known_hash=f"sha256:{sha256}",
                fname=name,
                path=place,
                downloader=pooch.HTTPDownloader(timeout=_SECONDS),
            )
        )
    except (OSError, ValueError) as error:  # requests' errors are OSErrors; a wrong sum, ValueError
        with contextlib.suppress(OSError):
            place.rmdir()  # only if nothing is in it
        if isinstance(error, OSError) and (full := no_room(place, error)):
            raise full from error
        reason = "its sha256 is another" if isinstance(error, ValueError) else f"{error}"
        raise DataError(
            f"got no usable {url} ({reason}); wanted the file of sha256 {sha256}; "
            f"check the connection, or put the file into {place}"
        ) from error
