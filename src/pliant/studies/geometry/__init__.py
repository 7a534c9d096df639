"""The geometry study: augmentation, invariant features and deformable sampling on transformed objects."""

from pliant.studies.geometry.contestants import CONTESTANTS, Contestant, Net, build
from pliant.studies.geometry.protocol import Protocol, Task
from pliant.studies.geometry.study import Study

__all__ = ["CONTESTANTS", "Contestant", "Net", "Protocol", "Study", "Task", "build"]
