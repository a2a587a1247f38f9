import numpy as np
import pytest
import torch

from dgnet_fast.metrics import expand_queries


def test_against_the_definition():
    random = np.random.RandomState(0)
    query, gallery = random.standard_normal((5, 6)), random.standard_normal((11, 6))
    query[1] = -gallery[:4].sum(0)  # some of its neighbours have negative cosines
    for neighbours, alpha in ((3, 3.0), (11, 0.5), (20, 0.0), (1, 2.0)):
        ours = expand_queries(
            torch.from_numpy(query), torch.from_numpy(gallery), neighbours=neighbours, alpha=alpha, chunk=2
        )
        for q, found in zip(query, ours.numpy(), strict=True):
            q = q / np.linalg.norm(q)
            cosines = sorted(((g @ q / np.linalg.norm(g), g / np.linalg.norm(g)) for g in gallery),
                             key=lambda pair: -pair[0])  # fmt: skip
            total = q + sum(max(s, 0) ** alpha * g for s, g in cosines[:neighbours])
            np.testing.assert_allclose(found, total / np.linalg.norm(total), atol=1e-5)


@pytest.mark.parametrize(
    "options", [{"neighbours": 0}, {"alpha": -1.0}, {"alpha": float("nan")}, {"chunk": 0}]
)
def test_refuses(options):
    with pytest.raises(ValueError, match="allowed: at least 1, 0 and 1"):
        expand_queries(torch.ones(2, 4), torch.ones(3, 4), **options)
    with pytest.raises(ValueError, match=r"shapes \(2, 4\) and \(3, 5\)"):
        expand_queries(torch.ones(2, 4), torch.ones(3, 5))
