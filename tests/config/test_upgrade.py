"""What files of earlier versions leave out is what their models had."""

import pytest

from unified_vae.config.model import ConvConfig, ResidualConfig
from unified_vae.config.upgrade import PICTURE_SIDE, missing_fields
from unified_vae.core.principal_components import LARGEST_SIDE


def test_the_side_of_the_picture_is_the_one_that_components_have():
    assert PICTURE_SIDE == LARGEST_SIDE


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({"image_size": 64}, "pca"),
        ({"image_size": 65}, "full"),
        ({"image_size": 128, "pca_init": False}, "pca"),
        ({"image_size": 128, "pca_init": True}, "full"),
    ],
)
def test_details_of_before_were_made_at_full_size_where_that_is_another_network(settings, size):
    assert missing_fields({"family": "residual", **settings})["refine_resolution"] == size


def test_files_of_today_leave_nothing_out():
    for model in (ResidualConfig().model_dump(), ConvConfig().model_dump(), None):
        assert missing_fields(model) == {}
