from __future__ import annotations

import pickle

from imagegpt.errors import InputError, MissingExtra


def test_a_missing_extra_is_bad_input_and_a_missing_module_and_says_what_to_install():
    error = MissingExtra("Painting", "brushes", "studio")
    assert isinstance(error, InputError)
    assert isinstance(error, ModuleNotFoundError)
    assert str(error) == 'Painting needs brushes: pip install "imagegpt[studio]".'


def test_a_missing_extra_comes_out_of_another_process_as_it_was():
    error = pickle.loads(pickle.dumps(MissingExtra("Painting", "brushes", "studio")))
    assert type(error) is MissingExtra
    assert str(error) == 'Painting needs brushes: pip install "imagegpt[studio]".'
