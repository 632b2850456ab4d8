from app.domain.likeness import texts_of
from app.services.streamed_answers import StreamedAnswer


def test_choices_are_put_together_each_by_itself() -> None:
    answer = StreamedAnswer()
    for index, content in ((0, "Hel"), (1, "Good"), (0, "lo"), (1, "bye")):
        answer.add({"choices": [{"index": index, "delta": {"content": content}}]})
    answer.add({"choices": [], "usage": {"prompt_tokens": 1}})
    assert texts_of(answer.whole()) == ["Hello", "Goodbye"]


def test_texts_and_calls_are_put_together() -> None:
    answer = StreamedAnswer()
    answer.add({"choices": [{"index": 0, "text": "a"}]})
    answer.add({"choices": [{"index": 0, "text": "b"}]})
    assert texts_of(answer.whole()) == ["ab"]
    answer = StreamedAnswer()
    for function in ({"name": "weather", "arguments": ""}, {"arguments": "{}"}):
        call = {"index": 0, "function": function}
        answer.add({"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]})
    assert texts_of(answer.whole()) == ["weather({})"]


def test_a_response_ends_with_its_whole() -> None:
    answer = StreamedAnswer()
    answer.add({"type": "response.output_text.delta", "delta": "x"})
    output = [{"type": "message", "content": [{"type": "output_text", "text": "x"}]}]
    answer.add({"type": "response.completed", "response": {"id": "resp_1", "output": output}})
    assert texts_of(answer.whole()) == ["x"]
