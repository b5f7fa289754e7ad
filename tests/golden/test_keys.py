"""Every array of every golden file is read by a test, or named here with the reason why not."""

from collections.abc import Iterable
from fnmatch import fnmatchcase

import numpy as np
import pytest

from tests.golden.clip import FOLDER

NOTE = "how the file was made"
RELEASE_ONLY = "only the release has it"

# By file, by the test that reads them: the keys.
READ: dict[str, dict[str, list[str]]] = {
    "deer_dirichlet": {
        "test_dirichlet": [
            *(f"case*/{name}" for name in ("labels", "alpha", "num_classes", "n_workers", "randomstate_seed")),
            *(f"case*/{name}" for name in ("indices_concat", "sizes", "next_uniform_of_the_stream")),
        ],
    },
    "deer_lora": {
        "test_lora": [
            *("base/*", "x", "tokens", "base_*", "r[0-9]*", "loss/*", "metrics/*"),
            *("dylora/max_rank", "dylora/lora/*", "dylora/rank*", "dylora/randint_draws_*", "dylora/dynamic/in"),
            *(f"dylora/dynamic/*/{name}" for name in ("out", "grad_of_weighted_sum", "get_rank")),
        ],
    },
    "deer_noise_multiplier": {
        "test_noise_multiplier": [
            *(f"case*/{name}" for name in ("args", "client_data_sizes", "noise_multiplier", "sample_rate", "steps")),
            "args_columns",
        ],
    },
    "deer_rounds": {
        "test_rounds": [
            "base/*",
            "init/*",
            "X",
            "Y",
            "text_features",
            "batch_size",
            "lora_r",
            "lora_alpha",
            "*_dp[01]/*",
        ],
    },
    "deer_server": {
        "test_deer_server": [
            *(
                "cases",
                "central_in/*",
                "clients_*",
                "size_weights_*",
                "node_num",
                "*/out/*",
                "*/noise/*",
                "*/noise_std",
            ),
        ],
    },
    "fedpft_construct_*": {
        "test_submodel": [
            *("fm/*", "fm_config", "input/*", "fm_hidden_states", "fm_last_hidden_state", "fm_pooler_output"),
            *("retained_*/layers_retained", "retained_*/intermediate_rank", "retained_*/layer[0-9]*"),
            *("retained_*/sub_*", "retained_*/single_layer*", "retained_*/distill/*"),
        ],
    },
    "fedpft_misc": {
        "test_fedpft_aggregation": [
            *("agg/current/*", "agg/client_models/*", "agg/datavol"),
            *("agg/case*/selected_clients", "agg/case*/order_of_models", "agg/case*/uniform/*", "agg/case*/weighted/*"),
        ],
        "test_fedpft_sampling": ["sample/*", "lr/*"],
    },
    "fedpft_round_*": {
        "test_fedpft_round": [
            *("info", "lora_modules_matched", "fm/*", "sub/*", "client*_data/*", "align_data/*"),
            *("eval/input_ids", "eval/attention_mask", "eval/pixel_values"),
            *("logits_*", "adapter_*", "selected_clients", "order_of_returned_models", "client_trainable"),
            *("client[0-9]*/adapter_out/*", "client[0-9]*/na", "client[0-9]*/nza_layer*", "client[0-9]*/train_losses"),
            *("nza_borderline_layer*", "APoZ_layer*", "align/losses", "align/trainable", "align/changed_keys"),
            *("align/student_adapter_*", "align/random_seed", "align/after/*", "align/logits_sub_after"),
            *(f"align/layer*/{name}" for name in ("shuffled_index", "retained_neuron", "other_neuron_updated")),
        ],
    },
    "harmofl_amp": {
        "test_amplitude": [
            *("L_values", "case*/batches", "case*/process_m*", "case*/INTENDED_*", "case*/fixed/*"),
            *("case*/fixed_zero_amp/out", "case*/extract_amp/out", "case*/normalize/*", "case*/mutate/*"),
            *("case*/AmpNorm/out_*", "case*/AmpNorm/running_amp_*", "case*/AmpNorm/input_changed_in_place"),
        ],
        "test_harmofl_communication": ["case*/comm/*"],
    },
    "harmofl_fedavg": {"test_harmofl_communication": ["bn_with*"], "test_harmofl_norm": ["harmofl_bn/*"]},
    "harmofl_loss": {"test_harmofl_loss": ["*"]},
    "harmofl_wpoptim": {"test_perturbation": ["X", "y", "init/*", "*/kwargs", "*/step*"]},
    "prrfl_communication": {
        "test_prrfl_communication": ["pfa_rate_schedule", "l_rate", "iters", "equal/*", "unequal/*"],
    },
    "prrfl_det": {
        "test_det": [
            *("transition/*", "loss[0-9]*/logits_*", "loss[0-9]*/labels", "loss[0-9]*/stage*", "loss/returned_columns"),
            *("loss[0-9]*/wk1/ce_*", "loss[0-9]*/wk1/kl_*", "loss[0-9]*/wk1/loss_*", "loss[0-9]*/wk1/grad_*"),
            *("test/*", "epoch/*"),
        ],
    },
    "prrfl_pfa": {"test_fourier": ["*/in", "*/out*"]},
}

# By file: the keys that no test reads, and why.
UNREAD: dict[str, dict[str, str]] = {
    "deer_dirichlet": {"case*/client_partition_returned": "not what the last client gets; sizes and indices say more"},
    "deer_lora": {"dylora/dynamic/*/error": f"{RELEASE_ONLY}: its frozen variant fails beyond the last rank"},
    "deer_noise_multiplier": {"opacus_version": NOTE},
    "deer_server": {
        **dict.fromkeys(("keys", "select_*"), "also in central_in and in cases"),
        "meta": NOTE,
    },
    "fedpft_misc": {
        "agg/case*/weighted_*": "weights that do not sum to one, for other clients' models: there is no such mode here",
    },
    "fedpft_round_*": {
        "eval/labels": "no score of the evaluation is in the file",
        "align/training_arguments": "of the library's Trainer, which a plain loop stood in for",
        "align/layer*/retained_neuron_default_sort_on_this_cpu": "what one processor did with equal counts",
    },
    "harmofl_amp": {"case*/AmpNorm/input_after_first": "the release's change of its input: out_first", "meta": NOTE},
    "harmofl_wpoptim": {"*/*_state_keys": f"{RELEASE_ONLY}: names in its optimiser's saved state"},
    "prrfl_communication": {"meta": NOTE},
    "prrfl_det": {"loss[0-9]*/wk1/error": f"{RELEASE_ONLY}: it fails after the update"},
    "prrfl_pfa": {"L_values": "also in the names of the outputs", "meta": NOTE},
}
FILES = sorted(path.stem for path in FOLDER.glob("*.npz"))


def matching(table: Iterable[str], file: str) -> list[str]:
    return [name for name in table if fnmatchcase(file, name)]


@pytest.mark.parametrize("file", FILES)
def test_every_array_is_read_or_excused(file: str) -> None:
    (known,) = {*matching(READ, file), *matching(UNREAD, file)}
    read = READ.get(known, {})
    assert all((FOLDER / f"{test}.py").is_file() for test in read)
    patterns = [*(pattern for patterns in read.values() for pattern in patterns), *UNREAD.get(known, {})]
    with np.load(FOLDER / f"{file}.npz") as arrays:
        for key in arrays.files:
            assert sum(fnmatchcase(key, pattern) for pattern in patterns) == 1, key


@pytest.mark.parametrize("known", sorted({*READ, *UNREAD}))
def test_nothing_is_excused_that_is_not_there(known: str) -> None:
    keys = set()
    for file in FILES:
        if fnmatchcase(file, known):
            with np.load(FOLDER / f"{file}.npz") as arrays:
                keys |= set(arrays.files)
    patterns = [*(p for patterns in READ.get(known, {}).values() for p in patterns), *UNREAD.get(known, {})]
    assert [pattern for pattern in patterns if not any(fnmatchcase(key, pattern) for key in keys)] == []
