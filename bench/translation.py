"""Training a translator on pairs of sentences against the Hugging Face Seq2SeqTrainer: speed side by side, and BLEU.

Holds the recipe and the files that both sides read; measuring is in `duel`, the peer in `peers/trainer_seq2seq`.

    python -m bench.translation --make FOLDER MULTI30K
    python -m bench.translation FOLDER/model FOLDER/train.jsonl FOLDER/test.jsonl [--scores | --same 20 --smoothing 0]

MULTI30K is the folder of its parallel files (`train.en.gz`, `train.de.gz`, `test_2016_flickr.en.gz` and so on). FOLDER
gets them as JSON lines, English to German, and a Transformer that has learnt nothing (3 + 3 blocks, 256 wide, a
vocabulary of 8,192): a `MarianMTModel` of transformers, whose first weights both sides begin with. Losses are the same
only without smoothing: with it, the Trainer logs the smoothed loss and Headwater the likelihood.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

from bench.duel import compete, parser
from bench.tuning import Recipe, Task

RECIPE = Recipe(batch=64, lr=1e-3, weight_decay=0.01, epochs=6.0, max_tokens=128, dropout=0.1, attention_dropout=0.0)
SMOOTHING = 0.1  # of labels, as in the original Transformer
VOCABULARY = 8192
SPLITS = {"train": "train", "validation": "val", "test": "test_2016_flickr"}


def make(folder: Path, data: Path) -> None:
    """Write the pairs and the model into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    texts: list[str] = []
    for split, name in SPLITS.items():
        sides = [_lines(data / f"{name}.{language}.gz") for language in ("en", "de")]
        texts += [text for side in sides for text in side] if split == "train" else []
        pairs = (json.dumps({"source": one, "target": other}) for one, other in zip(*sides, strict=True))
        (folder / f"{split}.jsonl").write_text("".join(f"{pair}\n" for pair in pairs))
    _model(folder / "model", texts)


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in gzip.decompress(path.read_bytes()).decode().splitlines()]


def _model(folder: Path, texts: list[str]) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import MarianConfig, MarianMTModel, PreTrainedTokenizerFast, set_seed

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "</s>", "<s>"]
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet)  # pyright: ignore
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", bos_token="<s>")
    set_seed(1)
    model = MarianMTModel(
        MarianConfig(
            vocab_size=VOCABULARY,
            d_model=256,
            encoder_layers=3,
            decoder_layers=3,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=1024,
            decoder_ffn_dim=1024,
            activation_function="swish",  # as OPUS-MT has; at the kink of a ReLU rounding decides, and steps grow apart
            max_position_embeddings=256,
            init_std=256**-0.5,
            pad_token_id=0,
            eos_token_id=1,
            decoder_start_token_id=2,  # Marian begins with padding, whose input vector its peer would not train
            forced_eos_token_id=None,
            scale_embedding=True,
        )
    )
    model.save_pretrained(folder)
    fast.save_pretrained(folder)


def main() -> None:
    if sys.argv[1:2] == ["--make"]:
        make(*map(Path, sys.argv[2:]))
        return
    command_line = parser(__doc__, RECIPE)
    command_line.add_argument("--smoothing", type=float, default=SMOOTHING, help="of labels, default %(default)s")
    args = command_line.parse_args()
    task = Task(
        unit="pairs",
        scores=["bleu"],
        percent=True,
        headwater=[
            "task=seq2seq",
            f"task.label_smoothing={args.smoothing}",
            "task.metrics=[bleu]",
            "task.generate_examples=1000",
        ],
        peer=["trainer_seq2seq.py", "--smoothing", str(args.smoothing)],
        batching=["padded", "grouped"],
        limits=("task.max_source_tokens", "task.max_target_tokens"),
    )
    compete(task, args)


if __name__ == "__main__":
    main()
