"""The hand-made classifier: SIFT keypoints, a bag of visual words, a linear support vector machine."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import Tensor

WORDS = 300
DESCRIPTORS = 60_000  # from which the words are learned, at most
ENLARGE = 2  # before SIFT doubles the image itself, so that blobs of a few pixels become keypoints


class SiftWords:
    """Classify images by how often each visual word occurs in them.

    Keypoints are detected, so that scale and orientation are the image's own; descriptors are RootSIFT; words are
    the centres of mini-batch k-means; an image is described by the square root of its histogram, normalised to sum 1.

    Args:
        seed: of k-means, of the choice of descriptors and of the support vector machine.
    """

    def __init__(self, seed: int) -> None:
        import cv2

        self.seed = seed
        # A low threshold: clothes on a plain background have few corners of high contrast.
        self.sift: Any = cv2.SIFT.create(contrastThreshold=0.01)
        self.words: Any = None
        self.machine: Any = None

    def describe(self, images: Iterable[Tensor]) -> list[np.ndarray]:
        """Return the RootSIFT descriptors (n, 128) of every image (1, H, W) in [0, 1]."""
        import cv2

        described = []
        for image in images:
            grey = (image[0] * 255).round().byte().numpy()
            large = cv2.resize(grey, None, fx=ENLARGE, fy=ENLARGE, interpolation=cv2.INTER_CUBIC)
            _, found = self.sift.detectAndCompute(large, None)
            found = np.zeros((0, 128), np.float32) if found is None else found
            described.append(np.sqrt(found / np.maximum(found.sum(1, keepdims=True), 1e-12)))
        return described

    def histograms(self, described: list[np.ndarray]) -> np.ndarray:
        """Return the features of every image (N, words): zeros where it has no keypoint."""
        words = len(self.words.cluster_centers_)
        counts = np.zeros((len(described), words), np.float32)
        owner = np.repeat(np.arange(len(described)), [len(found) for found in described])
        if len(owner):
            # All images in one call: scikit-learn's overhead per call exceeds the work for one image.
            np.add.at(counts, (owner, self.words.predict(np.concatenate(described))), 1)
        shares: np.ndarray = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        seen: np.ndarray = np.sqrt(shares)
        return seen

    def fit(self, described: list[np.ndarray], labels: np.ndarray) -> SiftWords:
        """Learn the words and the machine; return self."""
        from sklearn.cluster import MiniBatchKMeans
        from sklearn.svm import LinearSVC

        everything = np.concatenate(described)
        if not len(everything):
            raise ValueError("sift: no image has a keypoint; train on more images")
        random = np.random.default_rng(self.seed)
        some = everything[random.permutation(len(everything))[:DESCRIPTORS]]
        words = min(WORDS, len(some))
        self.words = MiniBatchKMeans(words, random_state=self.seed, n_init=1, batch_size=4096, max_iter=30).fit(some)
        self.machine = LinearSVC(C=1.0, random_state=self.seed, max_iter=20_000)
        self.machine.fit(self.histograms(described), labels)
        return self

    def predict(self, described: list[np.ndarray]) -> np.ndarray:
        """Return the class of every image."""
        return np.asarray(self.machine.predict(self.histograms(described)))

    @property
    def parameters(self) -> int:
        """Return the number of learned values: words, weights and biases."""
        return int(self.words.cluster_centers_.size + self.machine.coef_.size + self.machine.intercept_.size)
