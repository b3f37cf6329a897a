"""Makes reference.safetensors from reference.npz, the logits that Hugging Face transformers gave for the demo model.

    python3 make_reference.py reference.npz reference.safetensors

Needs numpy. Keeps the float32 logits (last_*: of each prompt's last token, full_*: of every token of two prompts) and the
evaluation ids (valid_ids, int32); the prompts' own ids are in reference.json.
"""

import json
import struct
import sys

import numpy

source, target = sys.argv[1:]
arrays = numpy.load(source)
header, parts, end = {}, [], 0
for name in sorted(arrays.files):
    if not name.startswith(("last_", "full_", "valid_ids")):
        continue
    array = arrays[name]
    kind = {"float32": "F32", "int32": "I32"}[array.dtype.name]
    data = array.astype(array.dtype.newbyteorder("<")).tobytes()
    header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [end, end + len(data)]}
    parts.append(data)
    end += len(data)
text = json.dumps(header, separators=(",", ":")).encode()
text += b" " * (-len(text) % 8)
with open(target, "wb") as file:
    file.write(struct.pack("<Q", len(text)) + text + b"".join(parts))
