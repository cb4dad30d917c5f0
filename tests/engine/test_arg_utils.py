"""Arguments: one source for keywords and flags, errors that name what would work, what follows from a checkpoint."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import pytest

from vllm import EngineArgs
from vllm.checkpoint import Checkpoint
from vllm.config import CacheConfig, ModelConfig, NeuronOptions, SchedulerConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.engine.foreign_args import FOREIGN_OPTIONS
from vllm.engine.text.image_limits import most_images
from vllm.entrypoints.openai.cli_args import make_arg_parser
from vllm.settings.faults import Faults
from vllm.utils import FlexibleArgumentParser
from vllm.utils.argparse_utils import join_dotted


def _parse(*words: str) -> EngineArgs:
    parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())
    return AsyncEngineArgs.from_cli_args(parser.parse_args(list(words)))


def _config(model: Path, **options):
    return EngineArgs(model=str(model), device="null", **{"max_model_len": 64, **options}).create_engine_config()


@pytest.fixture
def notices(monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    return caplog


def test_the_command_lines_defaults_are_those_of_the_config():
    args = _parse()
    for section in (ModelConfig, CacheConfig, SchedulerConfig, NeuronOptions):
        for field in dataclasses.fields(section):
            if "help" in field.metadata:
                expected = field.default_factory() if field.default is dataclasses.MISSING else field.default
                assert getattr(args, field.name) == expected, field.name
    assert args == AsyncEngineArgs()


def test_every_flag_has_a_help_text():
    parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())
    assert all(action.help for action in parser._actions)
    parser.format_help()


def test_flags():
    line = "--model m --max_model_len 2k -tp 4 --no-enable-prefix-caching --enable-chunked-prefill --no-compile -q gguf"
    args = _parse(
        *line.split(), "--served-model-name", "a", "b", "--kv-cache-memory-bytes=1K", "--scheduling-policy=priority"
    )
    assert (args.model, args.max_model_len, args.tensor_parallel_size) == ("m", 2000, 4)
    assert (args.enable_prefix_caching, args.enable_chunked_prefill, args.compile) == (False, True, False)
    assert (args.served_model_name, args.kv_cache_memory_bytes) == (["a", "b"], 1024)
    assert (args.quantization, args.scheduling_policy) == ("gguf", "priority")


@pytest.mark.parametrize("word", ["auto", "-1"])
def test_the_models_own_length_can_be_asked_for(word):
    assert _parse(f"--max-model-len={word}").max_model_len is None


def test_mappings_as_the_guide_writes_them():
    pasted = '{"override_neuron_config": {"enable_bucketing": False,}}'
    expected = {"override_neuron_config": {"enable_bucketing": False}}
    assert _parse("--additional-config", pasted).additional_config == expected
    dotted = ["--additional-config.override_neuron_config.enable_bucketing", "false"]
    assert _parse(*dotted).additional_config == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max-model-len", "many"], "many"),
        (["--additional-config", "{"], "neither JSON nor a YAML mapping"),
        (["--dtype", "float8"], "float8"),
        (["--max-modell-len", "5"], "max-modell-len"),
        (["--max-model", "5"], "max-model"),
    ],
)
def test_bad_command_lines_end_with_status_2(words, message, capsys):
    with pytest.raises(SystemExit) as caught:
        _parse(*words)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_options_from_a_file_go_behind_those_of_the_command_line(tmp_path):
    file = tmp_path / "options.yaml"
    file.write_text(
        "model: m\nmax_model_len: 128\nserved-model-name: [a, b]\nenable-prefix-caching: false\n"
        "additional-config: {override_neuron_config: {tp_degree: 2}}\n"
    )
    args = _parse("--config", str(file), "--max-model-len", "64")
    assert (args.model, args.max_model_len, args.served_model_name) == ("m", 64, ["a", "b"])
    assert args.enable_prefix_caching is False
    assert args.additional_config == {"override_neuron_config": {"tp_degree": 2}}


def test_dotted_options_join():
    words = ["--a.b.c", "1", "--x", "y", "--a.b.d=text", "--a.e", "[1, 2]"]
    joined = join_dotted(words)
    assert joined[:2] == ["--x", "y"]
    assert json.loads(joined[2].partition("=")[2]) == {"b": {"c": 1, "d": "text"}, "e": [1, 2]}
    with pytest.raises(ValueError, match="needs a value"):
        join_dotted(["--a.b"])


@pytest.mark.parametrize(
    ("words", "most"),
    [
        (['{"image": 2}'], 2),
        (["{image: 0, video: 1}"], 0),
        (["image=16,video=2"], 16),
        (['{"image": {"count": 3, "width": 512, "height": 512}}'], 3),
        (['{"image": {"width": 512}}'], None),
        (["video=0"], None),
    ],
)
def test_limits_of_images(words, most):
    limits = _parse("--limit-mm-per-prompt", *words).limit_mm_per_prompt
    assert most_images(limits) == most
    assert most_images(_parse("--limit-mm-per-prompt.image", "5").limit_mm_per_prompt) == 5


def test_an_unknown_keyword_names_the_nearest():
    with pytest.raises(TypeError, match=r"'max_model_length'.*'max_model_len'"):
        EngineArgs(model="m", max_model_length=5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_num_seqs": "four"}, "max_num_seqs='four'"),
        ({"dtype": "bfloat1"}, "did you mean 'bfloat16'"),
        ({"scheduling_policy": "lifo"}, "choose from fcfs, priority"),
        ({"max_model_len": "many"}, "many"),
        ({"stream_interval": 0}, r"stream_interval=0 .* at least 1"),
        ({"max_num_queued_reqs": -1}, "at least 0"),
        ({"max_model_len": 0}, "max_model_len=0"),
        ({"max_model_len": 513}, "513: more than the 512"),
        ({"chat_template": "nowhere.jinja"}, "neither a file nor a template"),
        ({"generation_config": "nowhere"}, "generation_config"),
        ({"data_parallel_size": 2}, "replica"),
        ({"task": "embed"}, "only text generators"),
        ({"logits_processors": ["x"]}, "logits_processors"),
        ({"enable_lora": True}, "no adapter is named|neuronx target alone"),
        ({"lora_modules": ["a=/a"]}, "neuronx target alone"),
        ({"limit_mm_per_prompt": {"picture": 2}}, "'picture', which is no modality; known: image"),
        ({"limit_mm_per_prompt": "image=-1"}, r"limit_mm_per_prompt\['image'\]='-1' is no number"),
        ({"limit_mm_per_prompt": {"image": True}}, "is no number of items"),
        ({"structured_outputs_config": {"backend": "x"}}, "structured_outputs_config: backend 'x'.*guidance"),
        ({"structured_outputs_config": {"disable_any_white_space": True}}, "mean 'disable_any_whitespace'"),
        ({"structured_outputs_config": {"disable_any_whitespace": "yes"}}, "must be of type bool"),
        ({"structured_outputs_config": {"enable_in_reasoning": True}}, "enable_in_reasoning"),
    ],
)
def test_what_cannot_be_had_is_refused_by_name(tiny_llama, options, message):
    with pytest.raises(ValueError, match=message):
        _config(tiny_llama, **options)


def _asked_for(option):
    return {bool: not option.default, int: 7, float: 7.5, str: "x", list: ["x"]}.get(option.type, {"a": 1})


def test_options_without_effect_are_noted(tiny_llama, notices):
    idle = {name: option for name, option in FOREIGN_OPTIONS.items() if not (option.refused or option.hf_override)}
    asked = {name: _asked_for(option) for name, option in idle.items()}
    _config(tiny_llama, **asked)
    for name, value in asked.items():
        assert f"{name}={value!r} has no effect: {FOREIGN_OPTIONS[name].reason}" in notices.text


def test_options_that_are_refused_say_why():
    """All of them in one go, from whatever door."""
    asked = {name: _asked_for(option) for name, option in FOREIGN_OPTIONS.items() if option.refused}
    faults = Faults()
    EngineArgs(model="x", **asked).examined_config(faults, Checkpoint(Path(), {}))
    assert {fault.name: str(fault) for fault in faults.found} == {
        name: f"{name}={value!r} is not supported: {FOREIGN_OPTIONS[name].reason}" for name, value in asked.items()
    }


def test_entries_of_the_models_config_have_options(tiny_llama, notices):  # N12
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    config = _config(tiny_llama, rope_scaling=json.dumps(yarn), rope_theta=7.5, max_model_len=2048)
    assert config.model_config.hf_config["rope_scaling"] == yarn
    assert (config.model_config.hf_config["rope_theta"], config.model_config.max_len) == (7.5, 2048)
    assert "rope_theta=7.5 is taken as hf_overrides" in notices.text
    args = _parse("--model", str(tiny_llama), "--rope-scaling", json.dumps(yarn), "--device", "null")
    assert args.create_engine_config().model_config.hf_config["rope_scaling"] == yarn
    with pytest.raises(ValueError, match="Give it once"):
        _config(tiny_llama, rope_theta=7.5, hf_overrides={"rope_theta": 8.0})


def test_code_of_a_checkpoint_is_never_run_and_asking_for_it_is_noted(tiny_llama, notices):  # N7
    _config(tiny_llama, trust_remote_code=True)
    assert "trust_remote_code=True has no effect: code that comes with a checkpoint is never run" in notices.text
    unknown = {"auto_map": {"AutoModel": "modeling.Own"}, "architectures": ["OwnForCausalLM"]}
    args = EngineArgs(model=str(tiny_llama), trust_remote_code=True, hf_overrides=unknown, device="cpu")
    with pytest.raises(ValueError, match=r"code that comes with its checkpoint \(auto_map\), which is never run"):
        args.create_engine_config()


@pytest.mark.parametrize("name", ["generation_config", "chat_template", "kv_offloading_dir", "download_dir"])
def test_a_tilde_is_the_users_directory(tiny_llama, tmp_path, monkeypatch, name):  # N13
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "generation_config.json").write_text('{"temperature": 0.25}')
    (tmp_path / "own" / "t.jinja").write_text("{{ messages }}")
    path = "~/own/t.jinja" if name == "chat_template" else "~/own/"
    config = _config(tiny_llama, **{name: path})
    model = config.model_config
    found = {
        "generation_config": model.hf_generation_config.get("temperature") == 0.25,
        "chat_template": model.chat_template == "{{ messages }}",
        "kv_offloading_dir": config.cache_config.kv_offloading_dir == f"{tmp_path}/own",
        "download_dir": model.download_dir == f"{tmp_path}/own",
    }
    assert found[name]


@pytest.mark.parametrize("kind", ["model", "tokenizer"])
def test_a_tilde_before_a_checkpoint(tiny_llama, tmp_path, monkeypatch, kind):  # N13
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "models").symlink_to(tiny_llama.parent)
    given = f"~/models/{tiny_llama.name}/"
    config = EngineArgs(**{"model": str(tiny_llama), "device": "null", kind: given}).create_engine_config()
    assert config.model_config.model_path == str(tiny_llama)


def test_a_tilde_in_options_of_the_server(tmp_path, monkeypatch):  # N13
    monkeypatch.setenv("HOME", str(tmp_path))
    names = ("uds", "ssl_keyfile", "ssl_certfile", "ssl_ca_certs", "tool_parser_plugin", "reasoning_parser_plugin")
    words = [word for name in names for word in (f"--{name.replace('_', '-')}", f"~/{name}")]
    args = make_arg_parser(FlexibleArgumentParser()).parse_args(words)
    assert {name: getattr(args, name) for name in names} == {name: f"{tmp_path}/{name}" for name in names}


def test_every_fault_of_every_stage_is_in_one_message(tiny_llama):  # N17
    options = {
        "max_num_queued_reqs": -1,  # an option alone
        "task": "embed",  # an option that is known and not served
        "chat_template": "nowhere.jinja",  # a file
        "max_model_len": 513,  # against the checkpoint
        "data_parallel_size": 2,  # settings that no target has
        "override_neuron_config": {"foo_bar": 1, "is_medusa": True},  # keys: unknown, and known but not served
    }
    with pytest.raises(ValueError) as caught:
        _config(tiny_llama, **options)
    named = {fault.name for fault in caught.value.faults}
    assert named >= {*options, "foo_bar", "is_medusa"} - {"override_neuron_config"}


def test_options_of_ours_without_effect_are_noted(tiny_llama, notices):
    _config(tiny_llama, enforce_eager=True)
    assert "enforce_eager=True has no effect" in notices.text


def test_defaults_are_not_noted(tiny_llama, notices):
    _config(tiny_llama)
    assert "no effect" not in notices.text


def test_longer_than_the_model_with_leave(tiny_llama, monkeypatch):
    monkeypatch.setenv("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "1")
    assert _config(tiny_llama, max_model_len=600).model_config.max_len == 600


def test_the_operators_bound_of_outputs(tiny_llama, tmp_path):
    """The checkpoint's own max_new_tokens is a default, and no bound."""
    (tmp_path / "generation_config.json").write_text('{"max_new_tokens": 9}')
    bounds = [
        _config(tiny_llama, **options).model_config.max_output_tokens
        for options in (
            {},
            {"override_generation_config": {"max_new_tokens": 7}},
            {"override_generation_config": {"temperature": 0.5}},
            {"generation_config": str(tmp_path)},
            {"generation_config": "vllm", "override_generation_config": {"max_new_tokens": 5}},
        )
    ]
    assert bounds == [None, 7, None, 9, 5]


def test_what_follows_from_the_checkpoint(tiny_llama):
    config = _config(tiny_llama, max_model_len=None, max_num_seqs=2)
    model = config.model_config
    assert model.max_len == 512
    assert model.served_model_name == [str(tiny_llama)]
    assert model.vocab_size == 320
    assert model.architecture == "LlamaForCausalLM"
    assert config.scheduler_config.max_num_seqs == 2
    assert config.target == "null"


def test_the_length_may_come_from_the_neuron_config(tiny_llama):
    override = {"override_neuron_config": {"seq_len": 48}}
    assert _config(tiny_llama, max_model_len=None, additional_config=override).model_config.max_len == 48
    override = {"override_neuron_config": {"seq_len": 1024}}
    with pytest.raises(ValueError, match="1024: more than the 512"):
        _config(tiny_llama, max_model_len=None, additional_config=override)


def test_overrides_of_the_models_config(tiny_llama):
    config = _config(tiny_llama, max_model_len=None, hf_overrides={"max_position_embeddings": 256})
    assert config.model_config.max_len == 256


def test_keyword_values_are_brought_to_their_types(tiny_llama):
    import torch

    config = _config(tiny_llama, max_model_len="0.05k", served_model_name="name", dtype=torch.float32)
    assert config.model_config.max_len == 50
    assert config.model_config.served_model_name == ["name"]
    assert config.model_config.dtype == "float32"


def test_where_default_sampling_parameters_come_from(tiny_llama, tmp_path):
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.3, "eos_token_id": [5]}')
    given = _config(tiny_llama, generation_config=str(tmp_path), override_generation_config={"top_p": 0.5})
    assert given.model_config.hf_generation_config == {"temperature": 0.3, "eos_token_id": [5], "top_p": 0.5}
    none = _config(tiny_llama, generation_config="vllm").model_config.hf_generation_config
    assert none.keys() <= {"eos_token_id"}


def test_a_chat_template_may_be_a_file(tiny_llama, tmp_path):
    file = tmp_path / "template.jinja"
    file.write_text("{{ messages }}")
    assert _config(tiny_llama, chat_template=str(file)).model_config.chat_template == "{{ messages }}"
