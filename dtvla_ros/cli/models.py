"""``dtvla`` commands about policies as files: export, inspect, convert, bench."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Exit, Option

from dtvla_ros.cli.arguments import Compile, File, Folder, Json, call, group, names
from dtvla_ros.files import find_shared, write_json

app = group()


@app.command()
def export(
    source: Annotated[Path, Argument(file_okay=False,
        help='Folder of a training run or of a policy.')],
    out: Annotated[Path | None, Folder(help='Folder of the new policy. [default: models/nano for '
        "a run, else the policy's with the weights' kind behind]")] = None,
    weights: Annotated[str, Option(
        help='fp32, int8, w8a8, int4, or auto: the fastest on this CPU.')] = 'fp32',
    name: Annotated[str | None, Option(
        help="The policy's name. [default: nano, or as it is]")] = None,
    replan_steps: Annotated[int | None, Option(min=1,
        help='Actions executed per decision. [default: 6, or as it is]')] = None,
    done_margin: Annotated[float | None, Option(min=0, help='By how many nats the word for a '
        'complete task must lead all others to be written: more, and the policy says that it is '
        'done less often, and later. [default: 0, or as it is]')] = None,
    success: Annotated[Path | None, File(
        help='JSON of an evaluation, put into the manifest.')] = None,
    observations: Annotated[list[Path] | None, Folder(help='Dataset whose frames the policy '
        'will prove itself on where it is loaded; repeat for several. [default: those the '
        'source has]')] = None,
    average_with: Annotated[list[Path] | None, Folder(help='Run or policy, fine-tuned from the '
        'same one as SOURCE: the mean of their weights is exported; repeat for several.')] = None,
    proof_only: Annotated[bool, Option('--proof-only',
        help='Only record the observations, in the policy itself.')] = False,
) -> None:
    """Turn a training run or a policy into a policy folder: weights, ONNX graphs, hashes.

    The graphs are compared with the float32 model before anything is written; quantised
    weights that stray too far are refused.

    **Examples**
    `dtvla export runs/nano --out models/nano`
    `dtvla export models/nano --weights int8 --out models/nano-int8`
    `dtvla export runs/large --weights auto` measures which weights decide fastest here
    `dtvla export runs/nano --success out/eval.json`
    `dtvla export runs/nano --observations data/tabletop`
    `dtvla export models/released --observations data/tabletop --proof-only`
    `dtvla export runs/more --average-with models/mine` what it learnt, and what it was before
    """
    from dtvla_ros.training.export import add_proof
    from dtvla_ros.training.export import export as run
    if proof_only:
        add_proof(find_shared(source), observations or ())
        print(f'{source}: observations recorded; next: dtvla inspect {source} --prove')
        return
    folder, parity = run(find_shared(source), out, name, replan_steps, success, weights,
                         observations or (), average_with or (), done_margin)
    print(f'{folder}: {parity}; next: dtvla demo --policy {folder}, or '
          f'dtvla eval --policy {folder} --episodes 10')


@app.command()
def inspect(
    path: Annotated[Path, Argument(
        help='Policy, checkpoint or adapter folder, or a .safetensors file.')],
    hashes: Annotated[bool, Option('--hash',
        help='Check the large files of a policy too.')] = False,
    prove: Annotated[bool, Option('--prove', help='Run the observations a policy carries on every '
        'engine here; exit code 1 if one disagrees.')] = False,
    json_file: Json = None,
) -> None:
    """Show what a policy or checkpoint is made of, and what is missing to run it.

    Of the weights only headers are read, so the size does not matter.

    **Examples**
    `dtvla inspect models/nano --hash`
    `dtvla inspect models/nano --prove` does it compute here what was exported?
    `dtvla inspect deepthinkvla_libero_cot_rl --json out/inspect.json`
    `dtvla inspect deepthinkvla_libero_cot_rl/model-00001-of-00002.safetensors`
    """
    from dtvla_ros.policy import inspect as module
    found = module.inspect(find_shared(path), hashes)
    module.show(found)
    write_json(json_file, found.to_dict())
    if prove:
        from rich.console import Console

        from dtvla_ros.engine.load import prove_everywhere
        table, proven = prove_everywhere(find_shared(path))
        Console().print(table)
        if not proven:
            raise Exit(1)


@app.command()
def convert(
    path: Annotated[Path, Argument(file_okay=False, help='Downloaded checkpoint folder.')],
    cameras: Annotated[str, Option(
        help='Comma-separated names, in the order of training.')] = 'primary,wrist',
    name: Annotated[str | None, Option(help="The policy's name. [default: the folder's]")] = None,
    license: Annotated[str, Option(
        help='Licence of the weights, as their publisher states it.')] = 'not stated',
    statistics: Annotated[Path | None, File(
        help='Action statistics. [default: norm_stats.json]')] = None,
    suite_key: Annotated[str | None, Option(
        help='Which suite, where the statistics hold several.')] = None,
    adapter: Annotated[Path | None, Folder(help='LoRA adapter merged into the weights.')] = None,
    out: Annotated[Path | None, Folder(help="Folder of the policy; a checkpoint's weights get a "
        "second name there where the file system can. [default: the checkpoint itself]")] = None,
    force: Annotated[bool, Option('--force',
        help='Replace a manifest that is there already.')] = False,
) -> None:
    """Make a downloaded DeepThinkVLA checkpoint a policy: a manifest with hashes beside it.

    Names and shapes of all weights, the tokenizer and the statistics are checked first.

    **Examples**
    `dtvla convert deepthinkvla_libero_cot_rl --out models/released`
    `dtvla convert deepthinkvla_libero_cot_rl --statistics norm_stats.json --suite-key libero_10`
    `dtvla convert deepthinkvla_base --adapter runs/lora --out models/merged`
    """
    from dtvla_ros.policy.convert import convert as run
    manifest = call(run, locals(), cameras=names(cameras))
    print(f'{out or path}: {manifest.name}, {len(manifest.files)} files hashed; next: '
          f'dtvla eval --policy {out or path} --engine torch')


@app.command()
def bench(
    geometry: Annotated[str, Option(
        help='nano, bench-60m or deepthinkvla-3b; random weights.')] = 'bench-60m',
    policy: Annotated[Path | None, Folder(
        help='Measure this policy, as it is, instead of a geometry.')] = None,
    engine: Annotated[str, Option(help='torch, onnx or both, with a comma.')] = 'torch,onnx',
    weights: Annotated[str, Option(
        help='fp32, int8; onnx also w8a8, int4; with commas. On cuda: bf16.')] = 'fp32,int8',
    device: Annotated[str, Option(help='cpu or cuda.')] = 'cpu',
    threads: Annotated[int, Option(min=1, help='CPU threads.')] = 2,
    rounds: Annotated[int, Option(min=1, help='Decisions of each kind.')] = 7,
    thought_tokens: Annotated[int, Option('--thought', min=2, help='Length of the thought.')] = 73,
    published: Annotated[bool, Option(help='Measure the published scheme beside.')] = True,
    compile: Compile = False,
    json_file: Json = None,
    plot: Annotated[Path | None, File(
        help='Draw the decisions here (PNG; needs matplotlib).')] = None,
    into: Annotated[Path | None, File(
        help='Document whose table of measurements is replaced.')] = None,
) -> None:
    """Measure how fast engines decide, beside the published scheme, and how far from the limit.

    All contenders share the weights and take turns in one process. The published scheme writes
    its thought with a generic generate loop and then runs everything a second time. Times are
    only good on an idle machine; ratios are taken within the run.

    **Examples**
    `dtvla bench --geometry bench-60m --json out/bench.json --plot out/bench.png`
    `dtvla bench --engine torch,onnx --weights int8`
    `dtvla bench --policy models/nano --thought 16`
    `dtvla bench --geometry deepthinkvla-3b --device cuda`
    """
    from dtvla_ros.engine import bench_report
    from dtvla_ros.engine.bench import BenchOptions
    if policy is not None:
        policy = find_shared(policy)
        engines = bench_report.contenders_of(policy, engine)
    else:
        engines = bench_report.contenders(engine, weights, device)
    options = call(BenchOptions, locals())
    bench_report.bench(options, json_file, plot, into)
