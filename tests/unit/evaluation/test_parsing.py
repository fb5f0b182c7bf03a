"""What an answer chooses, and what counts as right."""

import time

import pytest

from ma2mba.evaluation.parsing import find_gold, judge, parse_choice
from ma2mba.evaluation.words import words

OPTIONS = ("running", "training", "eating a red apple", "none of the above")


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        ("  b \n", "B"),
        ("(B)", "B"),
        ("B)", "B"),
        ("(B", "B"),
        ("[B]", "B"),
        ("'B'", "B"),
        ('"B."', "B"),
        ("B!", "B"),
        ("**C**.", "C"),
        ("**C**. eating a red apple", "C"),
        ("- B", "B"),
        ("# B", "B"),
        ("✓ B", "B"),
        (r"\boxed{B}", "B"),
        ("a", "A"),
        ("a.", "A"),
        ("b) training", "B"),
        ("Answer: b", "B"),
        ("ANSWER: B", "B"),
        ("Answer - B", "B"),
        ("Final answer: D", "D"),
        ("The answer is D because…", "D"),
        ("The answer is (b).", "B"),
        ("The best answer is: B", "B"),
        ("Best option: (B", "B"),
        ("The correct option is **B**: training", "B"),
        ("Option (C)", "C"),
        ("Option C: eating a red apple", "C"),
        ("The letter is B.", "B"),
        ("I would choose B.", "B"),
        ("I choose option C", "C"),
        ("It is B", "B"),
        ("I think it's C.", "C"),
        ("A is correct", "A"),
        ("A, because he runs", "A"),
        ("C is the right one", "C"),
        ("B because he trains", "B"),
        ("B. training.", "B"),
        ("B.training", "B"),
        ("B training", "B"),
        ("B: training", "B"),
        ("A - running", "A"),
        ("B\n\nThe man trains.", "B"),
        ("\n\nB", "B"),
        ("training", "B"),
        ("Training.", "B"),
        ("He is training hard", "B"),
        ("He is not running, he is training", "B"),
        ("Answer: The man is training.", "B"),
        ("He is eating the red apple.", "C"),
        ("None of the above", "D"),
        ("It could be A, but the answer is C", "C"),
        ("The answer is not A. The answer is C.", "C"),
        ("<think>A or B?</think>B", "B"),
        ("<answer>B</answer>", "B"),
        ("B<|endoftext|>", "B"),
        ("B<|endoftext|>C. eating", "B"),
        ("<|assistant|>B", "B"),
        ("Ｂ", "B"),
        ("（B）", "B"),
        ("B。", "B"),
        ("B、training", "B"),
        ("【B】", "B"),
        ("答案：C", "C"),
        ("答案是B。", "B"),
        ("选B", "B"),
        ("The correct answer is option B.", "B"),
        ("The answer is probably B", "B"),
        ("Therefore, B.", "B"),
        ("{'answer': 'B'}", "B"),
        ('{"answer": "B"}', "B"),
        ("```B```", "B"),
        (r"$\boxed{\text{B}}$", "B"),
        ("Not A, but B", "B"),
        ("A is wrong. B is right.", "B"),
        ("B is incorrect; the answer is A.", "A"),
        ("The answer is C, not D", "C"),
        ("B (running)", "B"),
        ("b,", "B"),
        ("the answer is a", "A"),
        ("The second option", "B"),
        ("Option B is correct, option A is wrong", "B"),
        ("Option A shows him", "A"),
        ("The options are A, B, C and D. I choose B.", "B"),
        ("Option A shows a dog, so the answer is B", "B"),
        ("Option 3", "C"),
        ("", None),
        (" \n", None),
        (".", None),
        ("<|endoftext|>", None),
        ("I do not know", None),
        ("A and B", None),
        ("A or B", None),
        ("A/B", None),
        ("B, C", None),
        ("B\nC", None),
        ("AB", None),
        ("ABCD", None),
        ("Both A and B", None),
        ("The answer is B or C", None),
        ("A. running\nB. training\nC. eating a red apple", None),
        ("(A) running (B) training", None),
        ("running and training", None),
        ("not B", None),
        ("C is not the answer", None),
        ("Option A or Option B", None),
        ("Either A or B", None),
        ("A, B, and D", None),
        ("(A)(B)", None),
        ("a or b", None),
        ("Neither A nor B", None),
        ("Option 7", None),
        ("Option A shows a dog. Option B shows a cat.", None),
        ("The first option or the second option", None),
        ("As an AI model, I cannot watch videos.", None),
        ("It is not training", None),
        ("E", None),
        ("F. sleeping", None),
        ("A man eats.", None),
        ("a man eats", None),
        ("The answer is a dog", None),
        ("Vitamin C", None),
        ("plan B", None),
        ("C++", None),
        ("C#", None),
        ("Because", None),
        ("D'accord", None),
        ("retraining", None),
    ],
)
def test_an_odd_answer_chooses_what_a_person_sees(answer, letter):
    assert parse_choice(answer, OPTIONS) == letter


@pytest.mark.parametrize(
    ("options", "answer", "letter"),
    [
        (("red", "red star"), "It is a red star.", "B"),
        (("red", "red star"), "red", "A"),
        (("a dog", "a cat"), "A dog", "A"),
        (("a dog", "a cat"), "the cat", "B"),
        (("dog", "cat"), "A cat.", "B"),
        (("yes", "no"), "No, he does not.", "B"),
        (("yes", "no"), "There is no car, yes", None),
        (("2", "3", "10"), "There are three people.", "B"),
        (("10%", "10"), "10 %", "A"),
        (("10%", "10"), "10", "B"),
        (("plan B", "plan A"), "plan A", "B"),
        (("plan B", "plan A"), "A", "A"),
        (("Vitamin A", "Vitamin C"), "It shows vitamin C.", "B"),
        (("left", "right"), "The right option is A", "A"),
        (("blue, red", "red, blue"), "red, blue", "B"),
        (("Alice", "Bob"), "A. Bob", "A"),
        (("cooking", "eating"), "He is cooking, then eating", None),
        (("He walks. Then he runs.", "He runs."), "He walks. Then he runs.", "A"),
        (("same", "same"), "B", "B"),
        (("one", "two", "three", "four", "five"), "E. training.", "E"),
        ((), "A", None),
    ],
)
def test_the_texts_of_options_are_told_apart(options, answer, letter):
    assert parse_choice(answer, options) == letter


@pytest.mark.parametrize("gold", ["B", "b", "B. training.", "training", "training.", "(B)"])
@pytest.mark.parametrize("answer", ["B", "B. training.", "training", "The answer is B."])
def test_a_gold_answer_may_be_the_letter_the_text_or_both(gold, answer):
    assert find_gold(gold, OPTIONS) == 1
    assert judge(answer, gold, OPTIONS)
    assert not judge("C. eating a red apple", gold, OPTIONS)


def test_a_gold_answer_that_names_no_option_is_never_right():
    assert find_gold("sleeping", OPTIONS) is None
    assert not judge("sleeping", "sleeping", OPTIONS)


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [
        ("blue ring", "blue ring", True),
        (" A Blue  Ring. ", "blue ring", True),
        ("the blue ring", "a blue ring", True),
        ("blue-ring", "blue ring", True),
        ("blue\tring", "blue ring", True),
        ("**blue ring**", "blue ring", True),
        ("„blue ring“", "blue ring", True),
        ("It is a blue ring.", "blue ring", True),
        ("The answer is a blue ring.", "blue ring", True),
        ("I think it's the blue ring", "blue ring", True),
        ("blue ring. It moved to the left.", "blue ring", True),
        ("blue ring because it glowed", "blue ring", True),
        ("D) blue ring", "blue ring", True),
        ("blue ring</s>", "blue ring", True),
        ("blue", "blue ring", False),
        ("blue ring and star", "blue ring", False),
        ("blue ring blue ring", "blue ring", False),
        ("not a blue ring", "blue ring", False),
        ("bluering", "blue ring", False),
        ("", "blue ring", False),
        ("theatre", "atre", False),
        ("No, she sits.", "no", True),
        ("Yes.", "yes", True),
        ("No", "yes", False),
        ("Yes he does", "yes", True),
        ("No one", "no", False),
        ("red, white and blue", "red", False),
        ("C", "C", True),
        ("(c)", "C", True),
        ("C. sofa", "C", True),
        ("Option C", "c", True),
        ("The answer is C", "C", True),
        ("C", "C. sofa", True),
        ("sofa", "C. sofa", True),
        ("D", "C. sofa", False),
        ("D. sofa", "C", False),
        ("C-section", "C", False),
        ("a", "the", False),
        ("an apple", "apple", True),
        ("an", "a", False),
        ("vitamin C", "vitamin D", False),
        ("team A", "team", False),
        ("7", "seven", True),
        ("Seven.", "7.0", True),
        ("007", "7", True),
        ("70", "7", False),
        ("1,200", "1200", True),
        ("1,2", "12", False),
        ("2.50", "2.5", True),
        ("2.5", "25", False),
        ("-7", "7", False),
        ("\N{MINUS SIGN}7", "-7", True),
        ("3-4", "34", False),
        ("3-4", "3 4", False),
        ("- 7", "7", True),
        ("7:15", "7.15", False),
        ("3/4", "34", False),
        ("50 %", "50%", True),
        ("50", "50%", False),
        ("€ 9", "9€", True),
        ("€9", "$9", False),
        ("> 9", "9", False),
        ("2nd", "second", True),
        ("y = 2", "y = -2", False),
        ("isn't", "isn t", False),
        ("naïve", "nai\u0308ve", True),
        ("naïve", "naive", False),
        ("F#", "F", False),
        ("...", "?", False),
        ("?", "?", True),
        ("", "", True),
        ("红色。", "红色", True),
    ],
)
def test_an_open_answer_is_judged_as_a_person_judges(answer, gold, right):
    assert judge(answer, gold) is right


def test_numbers_keep_every_digit():
    long = "1234567890" * 5
    assert words(long) != words(long[:-1] + "1")
    assert words("0" * 5000) == ("0",)


@pytest.mark.parametrize("text", ["(" * 20_000, "answer " * 20_000, "A or " * 20_000, "a " * 40_000, "1," * 20_000])
def test_a_long_answer_takes_no_long_time(text):
    began = time.monotonic()
    parse_choice(text, OPTIONS)
    judge(text, "red star")
    assert time.monotonic() - began < 5
