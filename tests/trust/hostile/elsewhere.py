"""Kinds of hostile input whose tests stand beside what they test: id → file and a test in it."""

from __future__ import annotations

from collections.abc import Mapping

_MODELS, _CONFIG = "tests/end_to_end/test_hostile_models.py", "core/tests/loader/test_config_check.py"
_SAFETENSORS, _GGUF = "core/tests/loader/test_safetensors_reader.py", "core/tests/loader/test_gguf_reader.py"
_REGISTRY, _STRANGERS = "core/tests/api/test_registry.py", "tests/packaging/test_third_parties.py"
_PARSERS, _TRIAL = "core/tests/text/test_parsers.py", "core/tests/api/test_trial.py"

ELSEWHERE: Mapping[str, tuple[str, str]] = {
    "C01": (_MODELS, "test_c01_c03_c04_code_in_the_directory_is_ignored_and_the_model_runs"),
    "C03": (_MODELS, "test_c03_a_field_that_names_another_model_fetches_nothing"),
    "C04": (_CONFIG, "test_fields_that_name_code_are_dropped_at_every_level"),
    "C08": (_MODELS, "test_c08_devices_and_size"),
    "C09": (_CONFIG, "test_rotary_scaling_that_cannot_be"),
    "C12": (_CONFIG, "test_quantization_names_a_registered_method"),
    "M02": (_SAFETENSORS, "test_m02_header_length"), "M03": (_SAFETENSORS, "test_m03_m04_layout"),
    "M04": (_SAFETENSORS, "test_m03_m04_layout"), "M05": (_SAFETENSORS, "test_m05_entries"),
    "M06": (_SAFETENSORS, "test_m06_duplicate_name_is_refused_where_the_library_accepts_it"),
    "M07": ("core/tests/loader/test_weights.py", "test_m07_nonfinite_weights"),
    "M09": ("core/tests/loader/test_checksum.py", "test_an_intact_file_passes_and_every_flipped_bit_is_found"),
    "M10": (_GGUF, "test_hostile_file"), "M11": (_GGUF, "test_hostile_file"), "M12": (_GGUF, "test_hostile_file"),
    "M14": (_GGUF, "test_hostile_file"), "M16": (_GGUF, "test_hostile_file"), "M17": (_GGUF, "test_hostile_file"),
    "M18": (_GGUF, "test_hostile_file"), "M19": (_GGUF, "test_hostile_file"),
    "M20": (_GGUF, "test_truncated_at_every_byte"), "M22": (_GGUF, "test_mutated_headers"),
    "T05": (_PARSERS, "test_t05_nothing_is_evaluated_in_10_000_answers"),
    "T06": (_PARSERS, "test_t06_work_is_linear"), "T08": (_PARSERS, "test_t08_calls_do_not_depend_on_cuts"),
    "G11": ("core/tests/structured/test_llguidance.py", "test_whatever_the_schema_answers_satisfy_it"),
    "L05": ("core/tests/loader/test_source.py", "test_what_the_hub_says_becomes_our_error"),
    "I01": ("tests/architecture/test_house_rules.py", "test_source_runs_no_data_and_checks_with_errors"),
    "X01": ("tests/end_to_end/test_optimized_python.py", "test_python_o_changes_nothing"),
    "P02": (_REGISTRY, "test_p01_p02_a_broken_plugin_is_its_own_row_and_an_error_when_asked_for"),
    "P03": (_TRIAL, "test_p03_an_import_that_ends_or_hangs_the_process_is_an_error_and_harms_no_other"),
    "P05": (_STRANGERS, "test_p05_p06_two_claimants_are_named_until_the_user_chooses"),
    "P06": (_STRANGERS, "test_p05_p06_two_claimants_are_named_until_the_user_chooses"),
    "P07": (_REGISTRY, "test_p07_an_incompatible_plugin_is_refused_with_both_numbers_and_the_remedy"),
    "P08": (_REGISTRY, "test_p08_p09_what_is_no_model_class_is_refused_with_every_member"),
    "P09": (_REGISTRY, "test_p08_p09_what_is_no_model_class_is_refused_with_every_member"),
    "P11": (_STRANGERS, "test_p11_malformed_metadata_is_named_where_something_is_not_found"),
    "P13": (_STRANGERS, "test_each_fault_is_an_error_with_its_code_and_a_row_of_doctor"),
    "P15": ("core/tests/api/test_discovery.py", "test_500_plugins_are_listed_without_importing_any"),
    "P16": (_REGISTRY, "test_p16_what_is_installed_while_we_run_appears_after_refresh_and_classes_stay"),
    "J01": (_REGISTRY, "test_j01_rows_as_data_with_the_record_checked"),
}  # fmt: skip
"""Of another kind of test are L04 and U01–U09 (there is no upload and no media), J02 (names of packages, an index of
which ships with core) and K03 (information only)."""
