"""Give a tracker our features: the boxes of a frame become crops, the crops become vectors of unit length, and a tracker
compares vectors by their dot product.

    python examples/track.py RUN

`AppearanceModel` has the method that boxmot's trackers call on their re-identification model, `get_features(boxes, frame)`
with boxes (N, 4) as x1, y1, x2, y2 and a BGR frame as OpenCV reads it. The frames here are drawn, and a plain assignment
(SciPy's) stands for the tracker, so that the example runs without a video and without boxmot.
"""

import sys

import numpy as np
from scipy.optimize import linear_sum_assignment

from dgnet_fast import Extractor
from dgnet_fast.data import SyntheticPedestrians


class AppearanceModel:
    """Features of the boxes of a frame."""

    def __init__(self, checkpoint: str) -> None:
        self.extractor = Extractor(checkpoint, device="cpu")

    def get_features(self, boxes: np.ndarray, frame: np.ndarray) -> np.ndarray:
        """Boxes (N, 4) in pixels and a BGR frame (H, W, 3) uint8 → float32 (N, F) of unit length."""
        height, width = frame.shape[:2]
        crops = []
        for x1, y1, x2, y2 in np.asarray(boxes).round().astype(int):
            x1, x2 = np.clip([x1, max(x2, x1 + 1)], 0, width)
            y1, y2 = np.clip([y1, max(y2, y1 + 1)], 0, height)
            crops.append(np.ascontiguousarray(frame[y1:y2, x1:x2, ::-1]))  # BGR to RGB
        return self.extractor.to_unit(self.extractor(crops)).numpy()


def drawn_frame(people: list[int], view: int) -> tuple[np.ndarray, np.ndarray]:
    """A BGR frame with people side by side, and their boxes."""
    pedestrians = SyntheticPedestrians(0)
    crops = [pedestrians.draw(person, view + person, 1, 128, 64) for person in people]
    boxes = np.array([[64 * k, 0, 64 * (k + 1), 128] for k in range(len(people))], dtype=np.float32)
    return np.concatenate(crops, axis=1)[:, :, ::-1].copy(), boxes


def main(checkpoint: str) -> None:
    model = AppearanceModel(checkpoint)
    first, second = [1, 2, 3, 4], [3, 1, 4, 2]  # the same people, who have changed places
    features = [
        model.get_features(boxes, frame) for frame, boxes in (drawn_frame(first, 0), drawn_frame(second, 40))
    ]
    rows, columns = linear_sum_assignment(-features[0] @ features[1].T)
    right = sum(first[r] == second[c] for r, c in zip(rows, columns, strict=True))
    print(f"{right} of {len(first)} people were found again")


if __name__ == "__main__":
    main(sys.argv[1])
