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
        ({"image_size": 64}, "picture"),
        ({"image_size": 65}, "full"),
        ({"image_size": 128, "pca_start": False}, "picture"),
        ({"image_size": 128, "pca_start": True}, "full"),
    ],
)
def test_details_of_before_were_made_at_full_size_where_that_is_another_network(settings, size):
    assert missing_fields({"family": "residual", **settings})["detail_size"] == size


def test_files_of_today_leave_nothing_out():
    assert (
        missing_fields(ResidualConfig().model_dump())
        == missing_fields(ConvConfig().model_dump())
        == missing_fields(None)
        == {}
    )
