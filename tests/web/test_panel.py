"""Settings, the choice of a model, and its card."""

from __future__ import annotations

from collections.abc import Callable

from playwright.sync_api import Page, expect

from .driving import ask, look_again
from .fake_server import Fake


def test_settings_show_the_servers_defaults_and_send_what_differs(page: Page, fake: Fake) -> None:
    page.click("#tab-settings")
    expect(page.get_by_label("Temperature", exact=True)).to_have_attribute("placeholder", "1")
    expect(page.get_by_label("Longest answer", exact=True)).to_have_attribute("placeholder", "no limit")
    reset = page.get_by_role("button", name="Back to the defaults")
    expect(reset).to_be_disabled()
    chosen = {
        "Temperature": "0.4", "Top p": "0.9", "Top k": "40", "Min p": "0.05", "Longest answer": "64", "Seed": "7",
        "Presence penalty": "0.5", "Frequency penalty": "-0.5", "Repetition penalty": "1.1",
    }  # fmt: skip
    for label, value in chosen.items():
        page.get_by_label(label, exact=True).fill(value)
    page.get_by_label("Stop at").fill("END\n\\n\\n")
    page.get_by_text("More fields of the request").click()
    page.get_by_label("More fields of the request, as JSON").fill('{"logprobs": true}')
    page.reload()
    ask(page)
    sent = {name: value for name, value in fake.requests[0].items() if name not in ("messages", "stream_options")}
    assert sent == {
        "model": "smollm2", "stream": True, "temperature": 0.4, "top_p": 0.9, "top_k": 40, "min_p": 0.05,
        "max_tokens": 64, "seed": 7, "presence_penalty": 0.5, "frequency_penalty": -0.5, "repetition_penalty": 1.1,
        "stop": ["END", "\n\n"], "logprobs": True,
    }  # fmt: skip
    expect(page.get_by_text("Settings differ from the defaults")).to_be_attached()
    page.click("#tab-settings")
    reset.click()
    page.get_by_role("button", name="Answer again").click()
    expect(page.locator(".message.assistant")).to_have_attribute("aria-busy", "false")
    assert set(fake.requests[1]) == {"model", "stream", "messages", "stream_options"}


def test_a_slider_and_its_field_say_the_same(page: Page) -> None:
    page.click("#tab-settings")
    slider, field = page.get_by_label("Temperature, slider"), page.get_by_label("Temperature", exact=True)
    expect(slider).to_have_value("1")
    slider.press("ArrowRight")
    expect(field).to_have_value("1.05")
    field.fill("0.5")
    expect(slider).to_have_value("0.5")
    page.get_by_role("button", name="Temperature: back to the default").click()
    expect(field).to_have_value("")
    expect(field).to_be_focused()
    expect(slider).to_have_value("1")


def test_a_value_that_cannot_be_sent_is_led_to(page: Page, fake: Fake) -> None:
    page.click("#tab-settings")
    page.get_by_text("More fields of the request").click()
    for label, value in [("Top p", "1.5"), ("Top k", "0.5"), ("More fields of the request, as JSON", "[1]")]:
        page.click("#tab-settings")
        field = page.get_by_label(label, exact=True)
        field.fill(value)
        page.click("#tab-live")
        page.fill("#prompt", "Hello?")
        page.press("#prompt", "Enter")
        expect(field).to_be_focused()
        expect(page.locator("#prompt")).to_have_value("Hello?")
        field.fill("")
    assert fake.requests == []


def test_a_model_or_an_adapter_is_chosen_and_remembered(fake: Fake, new_page: Callable[..., Page]) -> None:
    fake.models += [{"id": "sql", "parent": "smollm2"}, {"id": "poems", "parent": "smollm2"}]
    page = new_page()
    choice = page.get_by_role("combobox", name="Model")
    expect(choice).to_be_enabled()
    assert choice.locator("optgroup").get_attribute("label") == "With an adapter"
    choice.select_option("poems")
    ask(page)
    page.reload()
    expect(choice).to_have_value("poems")
    fake.models.pop()
    fake.state = "restarting"
    look_again(page)
    expect(choice).to_have_value("smollm2")
    assert fake.requests[0]["model"] == "poems"


def test_the_card_says_what_runs_and_who_brought_it(page: Page, fake: Fake) -> None:
    page.get_by_role("button", name="ready").click()
    panel = page.get_by_role("tabpanel", name="Model")
    for fact in ("LlamaForCausalLM", "bestiary-llama", "0.1.0", "135 M", "88.3 MiB", "bfloat16", "8,192 tokens",
                 "4,096 blocks, 65,536 tokens", "paged", "LoRA, PP", "cpu"):  # fmt: skip
        expect(panel).to_contain_text(fact)
    expect(panel.locator(".phases h4")).to_have_text("Start 3.1 s")
    assert panel.locator(".phases li").all_inner_texts()[3].split() == ["load", "the", "model", "1.9", "s"]
    shares = panel.locator(".bar i").evaluate_all("(parts) => parts.map((part) => part.getBoundingClientRect().width)")
    assert max(shares) == shares[3]
    panel.get_by_text("Ops (2)").click()
    expect(panel.get_by_text("rms_norm")).to_be_visible()
