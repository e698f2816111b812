"""The mutual information gap at its extremes, and its parts against scikit-learn."""

import pytest
import torch
from sklearn.metrics import mutual_info_score

from companion.data import factors
from companion.evaluation import mutual_information_gap
from companion.evaluation.disentanglement import _mutual_information


def grid():
    """Two independent factors of four values, many times over."""
    values = torch.cartesian_prod(torch.arange(4), torch.arange(4)).repeat(50, 1)
    return values, values.double()


def test_one_coordinate_for_each_factor_gives_one():
    values, code = grid()
    assert mutual_information_gap(code, values) == pytest.approx(1)
    assert mutual_information_gap(code[:, [1, 0]] * -3 + 1, values) == pytest.approx(1)


def test_a_factor_told_twice_gives_no_gap():
    values, code = grid()
    assert mutual_information_gap(torch.cat([code, code], 1), values) == pytest.approx(0)


def test_a_rotated_code_is_in_between():
    values, code = grid()
    turned = torch.stack([code[:, 0] + code[:, 1], code[:, 0] - code[:, 1]], 1)
    assert mutual_information_gap(turned, values) == pytest.approx(0, abs=1e-12)
    leaning = torch.stack([code[:, 0] + 0.3 * code[:, 1], code[:, 1]], 1)
    assert 0.2 < mutual_information_gap(leaning, values) < 0.9


def test_mutual_information_is_that_of_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randint(0, 5, (500,), generator=generator), torch.randint(0, 3, (500,), generator=generator)
    b = (a + b) % 4
    table = torch.zeros(5, 4).double().index_put_((a, b), torch.ones(500).double(), accumulate=True)
    assert _mutual_information(table) == pytest.approx(mutual_info_score(a, b))


@pytest.mark.parametrize(
    ("code", "values", "message"),
    [
        (torch.zeros(8, 1), torch.zeros(8, 1).long(), "two coordinates or more"),
        (torch.zeros(8, 2), torch.zeros(7, 1).long(), r"factors must have shape \(8, factors\), got \(7, 1\)"),
        (torch.full((8, 2), torch.nan), torch.arange(8)[:, None], "code must be finite"),
        (torch.zeros(8, 2), torch.zeros(8, 1).long(), "got a constant one"),
    ],
)
def test_bad_input_is_refused(code, values, message):
    with pytest.raises(ValueError, match=message):
        mutual_information_gap(code, values)


def test_factor_pictures_show_their_factors():
    data = factors()
    assert data.pixels.shape == (512, 1, 28, 28) and data.names == ("horizontal", "vertical", "size", "shape")
    assert len(torch.unique(data.pixels.flatten(1), dim=0)) == 512
    x = data.binary()[:, 0]
    area = x.sum((1, 2))
    columns = (x.sum(1) * torch.arange(28)).sum(1) / area
    rows = (x.sum(2) * torch.arange(28)).sum(1) / area
    torch.testing.assert_close(columns, 6.5 + 2.0 * data.values[:, 0])
    torch.testing.assert_close(rows, 6.5 + 2.0 * data.values[:, 1])
    assert (torch.stack([area[data.values[:, 2] == s].mean() for s in range(4)]).diff() > 10).all()
    assert x[:, 0].sum() == 0 and x[:, -1].sum() == 0  # nothing is cut off
