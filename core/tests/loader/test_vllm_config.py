"""The one configuration that models receive: windows and lengths, from whatever config.json says."""

from types import SimpleNamespace

import pytest

from bestiary.api.errors import UsageError
from bestiary.engine.loader.vllm_config import _max_model_len, _window_of_all_layers


@pytest.mark.parametrize(
    ("fields", "window"),
    [
        ({}, None),
        ({"sliding_window": 8}, 8),
        ({"sliding_window": None}, None),
        ({"sliding_window": [8, 9]}, None),
        ({"sliding_window": 8, "use_sliding_window": False}, None),
        ({"sliding_window": 8, "use_sliding_window": True}, 8),
        ({"sliding_window": 8, "layer_types": ["sliding_attention"] * 2}, 8),
        ({"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}, None),
        ({"sliding_window": 8, "sliding_window_pattern": 6}, None),
    ],
)
def test_the_window_that_layers_take_which_are_given_none(fields, window):
    assert _window_of_all_layers(SimpleNamespace(**fields)) == window


def test_lengths_are_those_trained_for_and_may_be_shortened_or_stretched(caplog):
    trained = {"max_position_embeddings": 100}
    assert _max_model_len(None, trained) == 100
    assert _max_model_len(7, trained) == 7
    stretched = {**trained, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}
    assert _max_model_len(400, stretched) == 400
    for data, wanted in ((trained, 101), (stretched, 401), (trained, 0), ({}, -5)):
        with pytest.raises(UsageError) as caught:
            _max_model_len(wanted, data)
        assert caught.value.field == "max_model_len"
    for nonsense in ({"model_max_length": -1}, {"max_sequence_length": True}, {"n_positions": 0}, {}):
        assert _max_model_len(None, nonsense) == 2048
    assert "does not say how long its context is" in caplog.text


def test_longrope_says_which_factors_hold(caplog):
    data = {
        "max_position_embeddings": 128,
        "rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 32},
    }
    assert _max_model_len(32, data) == 32
    assert not caplog.text
    assert _max_model_len(None, data) == 128
    assert "max_model_len=128 is above 32" in caplog.text
