import pytest

from cosmorama.errors import CosmoramaError
from cosmorama.text.chat import ChatEndpoint, ChatError, chat, within_words


def test_the_text_of_the_answer_comes_back_without_a_reasoning_models_thoughts(chat_server):
    chat_server.says("<think>red, so...\nhm</think>\n\nA red\x00 ball.\n")
    assert chat(ChatEndpoint(chat_server.url + "/", "m"), "Describe.", "red") == "A red ball."
    assert chat_server.paths == ["/v1/chat/completions"]
    assert "Authorization" not in chat_server.headers[0]


def test_an_answer_of_thoughts_alone_is_no_answer(chat_server):
    chat_server.says("<think>and then the tokens ran out")
    with pytest.raises(ChatError, match="empty"):
        chat(ChatEndpoint(chat_server.url, "m"), "Describe.", "red")


def test_a_server_that_is_not_there_is_a_typed_error():
    with pytest.raises(ChatError, match=r"127\.0\.0\.1 could not be asked \(ConnectError\)") as caught:
        chat(ChatEndpoint("http://127.0.0.1:9", "m", "sk-secret"), "Describe.", "red")
    assert isinstance(caught.value, CosmoramaError)
    assert caught.value.status == 502


def test_the_environments_proxy_is_not_asked(chat_server, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    chat_server.says("Fine.")
    assert chat(ChatEndpoint(chat_server.url, "m"), "Describe.", "red") == "Fine."


@pytest.mark.parametrize(
    "url", ["", "localhost:8000", "ftp://host/v1", "file:///etc", "http://", "http://me:pw@host/v1"]
)
def test_only_a_plain_http_url_is_an_endpoint(url):
    with pytest.raises(ValueError, match="URL"):
        ChatEndpoint(url, "m")


def test_the_key_is_never_shown():
    assert "sk-secret" not in repr(ChatEndpoint("http://host/v1", "m", "sk-secret"))
    with pytest.raises(ValueError, match="api_key") as caught:
        ChatEndpoint("http://host/v1", "m", "sk-secret\n")
    assert "sk-secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "limit", "kept"),
    [
        ("One two.", 5, "One two."),
        ("One two. Three four five six.", 5, "One two."),
        ('He said "go!" Then more and more.', 5, 'He said "go!"'),
        ("no sentence ends in here", 3, "no sentence ends"),
        ("A ball of 3.5 metres rolls on.", 5, "A ball of 3.5 metres"),
        ("", 3, ""),
    ],
)
def test_texts_are_cut_at_a_sentence_end(text, limit, kept):
    assert within_words(text, limit) == kept
