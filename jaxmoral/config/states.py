"""What a configuration goes through in a run, as types, so that a signature says what it needs.

Config    asked for, or read from a run folder: a file's and the flags' keys; "auto", names of
          files and numbers of labels to draw may stand in it
Resolved  `learning.resolve.resolve`: plugins have run, every name is known, texts are read in,
          "auto" is decided; no model was read. `learning.starting.pin_adapter` then names the
          checkpoint it starts from; one that is resumed is resolved by `learning.resume.go_on`
Settled   `learning.agent.settle`: what only files of the model and of an adapter could tell is
          filled in, such as digests and the labels drawn
Pinned    `learning.met.pinned`: stored runs that it meets are named by their checkpoints. A run
          folder keeps this one, so that a run stays what it was when those are trained on
"""

from typing import NewType

from jaxmoral.config.schema import Config

Resolved = NewType("Resolved", Config)
Settled = NewType("Settled", Resolved)
Pinned = NewType("Pinned", Settled)
