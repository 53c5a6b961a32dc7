"""The job: what it says where there is nothing to learn from."""

import pytest

from forecast import train


class Empty:
    """A collection without readings."""

    full_name = "urban_grid_ai.meter_readings"

    def estimated_document_count(self):
        return 0

    def find_one(self, **question):
        return None


def test_without_readings_it_is_not_tried_again(capsys):
    with pytest.raises(SystemExit) as ended:
        train.read(Empty())
    assert ended.value.code == 78  # files/training/run
    assert capsys.readouterr().err == "there are no readings in urban_grid_ai.meter_readings\n"
