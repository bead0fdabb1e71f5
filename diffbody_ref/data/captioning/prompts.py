"""The questions to a vision-language model about a picture: one for each field of `Caption`, from top to bottom.

As in the paper, which uses GPT-4V, all questions are asked together as one list, so that all captions have the same
form. The wording is our own: the paper does not print its questions.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from diffbody_ref.ops.captions import Caption

FIELDS = tuple(field.name for field in dataclasses.fields(Caption))
MAX_PHRASE = 120  # characters
MAX_WORDS = 60  # words of a caption: CLIP's text encoder reads 77 tokens

QUESTIONS: dict[str, str] = {
    "look": "Who is it: apparent sex and age, and build if it strikes you? (a young woman; an elderly man, heavyset)",
    "hair": "Colour, length and style of the hair, or what covers it? (long curly black hair; a red woollen hat)",
    "face": "Expression, beard, make-up, and what is worn on face and ears? (smiling, round glasses, gold earrings)",
    "upper": "Clothing of the upper body: kind, colour, pattern, layers? (a blue denim jacket over a white shirt)",
    "lower": "Clothing of the lower body, or the lower part of a dress? (slim grey trousers with a black belt)",
    "hands": "What do the hands do or hold, and what is worn on them? (a brown leather bag in the left hand)",
    "shoes": "Shoes and socks: kind and colour? (white trainers; barefoot)",
    "pose": "Posture of the body, and from where it is seen? (walking, seen from the side; sitting, facing the camera)",
    "background": "What is behind the person, and the light? (a street with parked cars, evening light)",
}

INSTRUCTIONS = (
    "You describe photographs of people for a data set. Describe the most prominent person in the picture, from top to "
    "bottom, by answering every question below with one short phrase: plain words, no full sentence, at most 12 words, "
    "no final stop. State only what can be seen; do not name anyone and do not guess at names, origin or feelings. "
    "Answer an empty string where the picture shows nothing of it. "
    "Answer with one JSON object and nothing else; its keys, all of them strings, in this order:"
)


def prompt() -> str:
    """The text that is sent with every picture: the instructions and the list of questions."""
    return "\n".join([INSTRUCTIONS, *(f"- {field}: {QUESTIONS[field]}" for field in FIELDS)])


def schema() -> dict[str, Any]:
    """The JSON schema of an answer, for servers that can enforce one."""
    texts = {field: {"type": "string"} for field in FIELDS}
    return {"type": "object", "properties": texts, "required": list(FIELDS), "additionalProperties": False}


class AnswerError(ValueError):
    """A model's answer is not a valid caption; the message tells the model how to correct it."""


def parse_answer(text: str) -> Caption:
    """Read the caption from a model's answer.

    Raises:
        AnswerError: the answer is not a JSON object with exactly the fields of `Caption`, each a short phrase on one
            line, or it describes nobody.
    """
    stripped = text.strip()
    if stripped.startswith("```"):  # many models put JSON into a code block, against their instructions
        stripped = stripped.strip("`").removeprefix("json").strip()
    try:
        answer = json.loads(stripped)
    except ValueError:
        raise AnswerError("the answer is not JSON; answer with one JSON object and nothing else") from None
    if not isinstance(answer, dict):
        raise AnswerError("the answer is not a JSON object")
    if missing := [field for field in FIELDS if field not in answer]:
        raise AnswerError(f"these keys are missing: {', '.join(missing)}")
    if unknown := [str(key) for key in answer if key not in FIELDS]:
        raise AnswerError(f"these keys are unknown: {', '.join(unknown)}; the keys are {', '.join(FIELDS)}")
    for field, phrase in answer.items():
        if not isinstance(phrase, str):
            raise AnswerError(f"{field} is not a string")
        if len(phrase) > MAX_PHRASE or "\n" in phrase.strip():
            raise AnswerError(f"{field} is too long: one phrase of at most {MAX_PHRASE} characters on one line")
    caption = Caption(**{field: answer[field].strip() for field in FIELDS})
    if not caption.look:
        raise AnswerError("look is empty; say whom the picture shows")
    if (words := len(caption.sentence().split())) > MAX_WORDS:
        raise AnswerError(f"the phrases have {words} words together; at most {MAX_WORDS}, so shorten them")
    return caption
