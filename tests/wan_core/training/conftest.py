"""Model files that trainings begin with, written once a module."""

import pytest

from tests.wan_core.training.tiny_run import write_files


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def image_files(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("image_files"), in_dim=36)
