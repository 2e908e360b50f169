"""Handlers as files: packs a folder into a bundle, and brings a bundle or a folder safely to where code is run from.

A bundle is a ``.tar.gz`` with the entry file at its top. Who may upload one may be a stranger, and what comes out is
read by the worker as root before any sandbox sees it. So nothing here trusts a name, a type or a size:

- One *sink* (sinks.py) makes everything, and makes only regular files (0644, or 0755 when they can be executed),
  folders and links inside the handler. It never overwrites and never walks through a link: a member's parent is a
  folder that the sink itself has made.
- A link may go up as far as the handler's top, then down, and never up again. So no chain of links leads out, and no
  file system has to be asked.
- Sizes are counted while they are unpacked, headers too: a kilobyte of gzip can hold a gigabyte of zeros.

A fault is a HandlerInvalidError that names it and the member, and leaves the target as empty as it was.
"""

from olcore.bundles.archives import unpack
from olcore.bundles.sinks import MAX_DEPTH, Bounds
from olcore.bundles.trees import copy, empty, pack

__all__ = ["MAX_DEPTH", "Bounds", "copy", "empty", "pack", "unpack"]
