"""The detection study: deformable convolution, deformable RoI pooling and feature mimicking in small detectors."""

from pliant.studies.detection.contestants import CONTESTANTS, QUICK, Contestant
from pliant.studies.detection.protocol import DATA, Protocol, Task
from pliant.studies.detection.study import Study

__all__ = ["CONTESTANTS", "DATA", "QUICK", "Contestant", "Protocol", "Study", "Task"]
