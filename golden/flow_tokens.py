"""A small T5 tokenizer, and the token ids of a thousand prompts in many scripts.

    python flow_tokens.py

SentencePiece learns the vocabulary (with the normalization of T5's own, nmt_nfkc), transformers makes tokenizer.json of
it: flow/parts/tokenizer_3. The ids in flow/t5_tokens.json are those of transformers' T5Tokenizer."""

import random
import shutil
import tempfile
from pathlib import Path

import sentencepiece
from transformers import T5Tokenizer

from common import GOLDEN, NEGATIVE, PROMPTS, WORDS, write_json

FOLDER = GOLDEN / "flow" / "parts" / "tokenizer_3"
PHRASES = """a photograph of an astronaut riding a horse on the moon
Ein Fuchs springt über den faulen Hund, während es schneit.
un château au bord de la mer, façon aquarelle, œuvre très détaillée
una montaña nevada al amanecer con niños y cigüeñas
uma raposa à beira-mar, ilustração, coração e pássaros
kot śpi na żółtej ławce pod źródłem światła
Příliš žluťoučký kůň úpěl ďábelské ódy
Vörösmarty tér esőben, hűvös őszi fény
bir kedi İstanbul'da ığdır ağacının altında uyuyor
một con mèo ngồi trên cửa sổ nhìn mưa rơi ở Hà Nội
Съешь же ещё этих мягких французских булок, да выпей чаю
їжак у тумані, світлий ліс, Київ
ένα καΐκι στο Αιγαίο με λευκά πανιά και γαλάζιο ουρανό
قطة تنام على نافذة مطلة على البحر في المساء
یک باغ ایرانی با حوض آب و درختان سرو
חתול כתום יושב על גדר ליד הים
एक बाघ जंगल में नदी के किनारे पानी पी रहा है
একটি নৌকা নদীতে ভাসছে, আকাশে মেঘ
ஒரு யானை கோவிலுக்கு முன் நிற்கிறது
แมวสีส้มนอนอยู่บนหลังคาบ้านไม้
한국의 가을 산과 절, 수채화 그림
富士山と桜の写真、朝の光、高精細
カタカナとひらがな、東京タワーの夜景
一只熊猫在竹林里吃竹子，水墨画风格
繁體中文：臺北的夜市，霓虹燈下的雨
გრძელი გზა მთებში, თბილისი
մի գեղեցիկ լեռ Երևանի մոտ
አንድ አንበሳ በሜዳ ላይ
ភ្នំពេញ នៅ ពេល យប់
🍎 🌧️ 👩‍🚀 🏳️‍🌈 🇺🇦 emoji in a row
Ｆｕｌｌ ｗｉｄｔｈ ﬁligree ½ ² ℃ №42 Ⅷ
x² + y² = z², ∑∫√∞ ≠ ≤ → ↔ ★""".splitlines()
ODD = ["  ", "\t", "\n", "\u00a0", "\u3000", "\u200b", "\u200d", "e\u0301", "\ufeff", "…", "—", "“", "”", "</s>", "<pad>", "<unk>",
       "<extra_id_0>", "<extra_id_99>", "▁", "_", "((", ")", ":1.3", "\\", "'", "\"", "<", ">", "\u0000", "\u007f", "\U0001f9d1", "ﷺ", "Ǆ", "ſ"]


def prompts(count):
    chance = random.Random(5)
    found = list(PROMPTS) + [NEGATIVE] + PHRASES + ODD + ["very " * 90 + "long", "字" * 300, "a" * 700]
    words = [w for phrase in PHRASES for w in phrase.split()] + WORDS
    while len(found) < count:
        kind = chance.randrange(4)
        if kind == 0:
            found.append(" ".join(chance.choice(words) for _ in range(chance.randrange(1, 9))))
        elif kind == 1:
            found.append("".join(chance.choice(words + ODD) for _ in range(chance.randrange(1, 7))))
        elif kind == 2:
            one, other = chance.choice(PHRASES), chance.choice(PHRASES)
            cut = slice(chance.randrange(len(one)), None), slice(None, chance.randrange(len(other)))
            found.append((one[cut[0]] + chance.choice(ODD) + other[cut[1]])[:60])
        else:
            blocks = [(0x20, 0x17f), (0x370, 0x5ff), (0x600, 0x6ff), (0x900, 0xdff), (0xe00, 0x11ff), (0x1e00, 0x2bff),
                      (0x3040, 0x30ff), (0x4e00, 0x9fff), (0xac00, 0xd7a3), (0xf900, 0xfaff), (0xfe30, 0xffef), (0x1f300, 0x1faff)]
            low, high = chance.choice(blocks)
            found.append("".join(chr(chance.randrange(low, high)) for _ in range(chance.randrange(1, 12))))
    return found[:count]


def make_tokenizer():
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    chance = random.Random(1)
    text = [" ".join(chance.sample(WORDS, 8)) for _ in range(500)]
    text += [p for p in PHRASES + PROMPTS + [NEGATIVE] if p for _ in range(4)]
    with tempfile.TemporaryDirectory() as scratch:
        corpus = Path(scratch) / "corpus.txt"
        corpus.write_text("\n".join(text), encoding="utf-8")
        sentencepiece.SentencePieceTrainer.train(
            input=str(corpus), model_prefix=str(Path(scratch) / "spiece"), vocab_size=1100, hard_vocab_limit=False, model_type="unigram",
            pad_id=0, eos_id=1, unk_id=2, bos_id=-1, pad_piece="<pad>", eos_piece="</s>", unk_piece="<unk>",
            character_coverage=0.9995, normalization_rule_name="nmt_nfkc", num_threads=1, minloglevel=2)
        shutil.copy(Path(scratch) / "spiece.model", FOLDER / "spiece.model")
    tokenizer = T5Tokenizer.from_pretrained(FOLDER, model_max_length=512)
    tokenizer.save_pretrained(FOLDER)
    print(len(tokenizer), sorted(p.name for p in FOLDER.iterdir()), sum(p.stat().st_size for p in FOLDER.iterdir()))


def make_tokens():
    tokenizer = T5Tokenizer.from_pretrained(FOLDER)
    texts = prompts(1000)
    ids = [tokenizer(text).input_ids for text in texts]
    lines = ",\n".join(json_line(text, row) for text, row in zip(texts, ids))
    path = GOLDEN / "flow" / "t5_tokens.json"
    path.write_text("[\n" + lines + "\n]\n", encoding="utf-8")
    print(path.stat().st_size, "bytes;", sum(2 in row for row in ids), "prompts with unknown tokens")


def json_line(text, ids):
    import json
    return json.dumps([text, ids], ensure_ascii=False, separators=(",", ":"))


if __name__ == "__main__":
    make_tokenizer()
    make_tokens()
