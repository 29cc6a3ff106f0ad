"""The page in a real browser: what it shows, and what each of its controls does to the graph."""

from __future__ import annotations

import shutil
from urllib.parse import urlsplit

import pytest
from support.operated import TASKS, Operated

pytest.importorskip('uvicorn', reason="the page needs pip install 'dtvla_ros[operator]'")
playwright = pytest.importorskip('playwright.sync_api', reason='pip install playwright')
CHROMIUM = next(filter(None, map(shutil.which, (
    'chromium', 'chromium-browser', 'google-chrome'))), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason='no browser: apt-get install chromium')
LOST = 'Not connected to the operator node'


@pytest.fixture(scope='module')
def chromium():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=CHROMIUM, args=['--no-sandbox', '--disable-gpu'])
        yield browser
        browser.close()


class Page:
    """A page in the browser, 1280 by 800; nothing may go wrong in it, or be asked of others."""

    def __init__(self, chromium, graph, address):
        self.graph, self.wrong, self.asked = graph, [], set()
        self.page = chromium.new_page(viewport={'width': 1280, 'height': 800})
        self.page.on('pageerror', lambda error: self.wrong.append(str(error)))
        self.page.on('request', lambda request: self.asked.add(urlsplit(request.url).netloc))
        self.page.goto(address)

    def text(self, selector):
        return self.page.locator(selector).first.inner_text()

    def until(self, condition, what):
        """Run both sides until a condition holds."""
        def met():
            self.page.wait_for_timeout(20)
            return condition()
        self.graph.spin(met, 60, what)

    def press(self, name):
        """Click on a button once it can be."""
        button = self.page.get_by_role('button', name=name, exact=True)
        self.until(button.is_enabled, name)
        button.click()


@pytest.fixture
def operated(graph):
    return Operated(graph)


@pytest.fixture
def page(chromium, graph, operated, request):
    made = Page(chromium, graph, operated.start(allow_control=request.param))
    yield made
    made.page.close()


def order_by_button(page, operated, name, order):
    """Press until the order was heard: DDS may lose a request to a server that is new to it."""
    lost = page.text('#said').count(AGAIN)
    page.press(name)
    page.until(lambda: operated.orders[-1:] == [order]
               or page.text('#said').count(AGAIN) > lost, name)
    if operated.orders[-1:] != [order]:
        page.press(name)
        page.until(lambda: operated.orders[-1:] == [order], name)


AGAIN = 'order it again'
CONTROLS = {'Start': ('start', None), 'Pause': ('pause', True), 'Resume': ('pause', False),
            'End task': ('stop', None), 'Task anew': ('vla/reset_episode', None),
            'Stop time': ('sim/pause', True), 'Go on': ('sim/pause', False),
            'Reset': ('sim/reset', None), 'Knock': ('sim/knock', None),
            'Film': ('play/film', True), 'End film': ('play/film', False),
            'Record': ('record', True), 'End recording': ('record', False)}


@pytest.mark.parametrize('page', ['true'], indirect=True)
def test_each_control_does_to_the_graph_what_it_says(operated, page):
    graph = operated.graph
    for name, order in CONTROLS.items():
        order_by_button(page, operated, name, order)

    page.press(TASKS[0])
    page.until(lambda: graph.heard['told'] and graph.last('told').data == TASKS[0], 'a task')
    for form, key, said in (('tell', 'told', 'stack <b>it</b> ...'),
                            ('override', 'override', 'reach the lemon')):
        field = page.page.locator(f'#{form} input')
        page.until(page.page.locator(f'#{form} button').first.is_enabled, form)
        field.fill(said)
        field.press('Enter')
        page.until(lambda key=key, said=said: graph.heard[key]
                   and graph.last(key).data == said, form)
    operated.tell_of_record('RECORDING', b'\0', '3 s, 14.1 MB, into /bags/x')
    page.until(lambda: page.text('#recording') == '● recording 3 s, 14.1 MB, into /bags/x',
               'the recording')
    for name in ('Success', 'Failure'):
        page.press(name)
        page.until(lambda name=name: graph.heard['mark']
                   and graph.last('mark').data == name.lower(), name)
    operated.say('/vla/reasoning', 'Nothing in hand. Moving left.')
    page.until(lambda: page.text('#thought').endswith('left.'), 'the thought')
    page.page.locator('#thought').click()
    assert page.page.locator('#override input').input_value() == 'Nothing in hand. Moving left.'
    page.press('Its own again')
    page.until(lambda: graph.last('override').data == '', 'the end of a correction')

    page.press('Take over')
    page.until(lambda: page.text('#driver b') == 'PERSON' and 'hold Shift' in page.text(
        '#driver i') and graph.heard['twist'], 'the page drives')
    keyboard = page.page.keyboard
    keyboard.down('w')
    page.until(lambda: len(graph.heard['twist']) > 5, 'twists')
    assert not any(m.twist.linear.x for _, m in graph.of('twist')), 'without the dead-man key'
    keyboard.down('Shift')
    page.until(lambda: graph.last('twist').twist.linear.x == 0.1, 'motion')
    keyboard.up('Shift')
    page.until(lambda: graph.last('twist').twist.linear.x == 0.0, 'released')
    keyboard.up('w')
    keyboard.down('Shift')
    keyboard.down('h')
    page.until(lambda: graph.last('twist').twist.linear.y < 0.0, 'on the way home')
    keyboard.up('h')
    keyboard.up('Shift')
    page.until(lambda: graph.last('twist').twist.linear.y == 0.0, 'released')
    page.page.locator('#home').hover()
    page.page.mouse.down()
    page.until(lambda: graph.last('twist').twist.linear.y < 0.0, 'on the way home')
    page.page.mouse.up()
    page.until(lambda: graph.last('twist').twist.linear.y == 0.0, 'released')
    keyboard.press('g')
    page.until(lambda: graph.heard['grip'] and graph.last('grip').data == 0.0, 'closed')
    page.press('Hand back')
    page.until(lambda: page.text('#driver b') == 'POLICY', 'handed back')

    for press in (lambda: page.page.locator('#stop').click(),
                  lambda: page.page.keyboard.press('Space'),
                  lambda: (page.page.locator('#tell input').focus(),
                           page.page.keyboard.press('Escape'))):
        graph.heard['estop'].clear()
        press()
        page.until(lambda: graph.heard['estop'] and graph.last('estop').data, 'the e-stop')
        page.until(lambda: page.text('#gate b') == 'FAULT'
                   and 'STOPPED: e-stop (page at' in page.text('#banner'), 'the stop is shown')
        page.press('Clear stop')
        page.until(lambda: not graph.last('estop').data and 'STOPPED' not in page.text('#banner'),
                   'cleared')
    page.page.locator('#tell input').focus()
    page.page.keyboard.type('a b')
    assert page.page.locator('#tell input').input_value() == 'a b', 'a blank is typed in a field'
    assert graph.last('estop').data is False
    operated.deaf = True
    page.page.keyboard.press('Escape')
    assert 'STOP sent, and no FAULT yet' in page.text('#banner')
    operated.deaf = False
    page.until(lambda: 'STOPPED: e-stop' in page.text('#banner'), 'the stop')
    assert not page.wrong and page.asked == {urlsplit(page.page.url).netloc}


@pytest.mark.parametrize('page', ['false'], indirect=True)
def test_what_is_shown_keeps_its_place_and_a_lost_node_is_said(operated, page):
    graph = operated.graph
    operated.say('/vla/reasoning', 'Nothing in hand. Moving left.')
    operated.say('/vla/reasoning', 'Nothing in hand. Moving right.')
    page.until(lambda: page.text('#policy b') == 'ACTING' and page.text('#gate b') == 'RUN',
               'both states')
    page.until(lambda: page.text('#thoughts mark') == 'right.', 'what changed')
    assert page.text('#asked') == 'the lemon, please' and page.text('#meaning') == TASKS[1]
    assert page.text('#draft') == (
        '12 of 16 drafted tokens kept, newly decoded: place, move')
    assert page.text('#sure') == 'confidence 82 %'
    page.until(lambda: '40 ms, budget 200 ms' in page.text('#took'), 'the budget')
    assert 'faces of people' in page.text('#cameras p')
    red = 'c => [...c.getContext("2d").getImageData(c.width / 2, c.height / 2, 1, 1).data]'
    page.until(lambda: page.page.locator('canvas').first.evaluate(red)[0] > 150, 'an image')
    assert page.page.locator('button:enabled').count() == 0, 'read-only'
    assert page.text('#stop') == 'read-only: no STOP here'

    places = ('() => [...document.querySelectorAll("section, #stop, #policy, #banner")]'
              '.map(e => JSON.stringify(e.getBoundingClientRect()))')
    before = page.page.evaluate(places)
    operated.values['question'] = 'Which bin? I am unsure about the blue bin.'
    page.until(lambda: page.text('#banner') == f'The policy asks: {operated.values["question"]}',
               'the question')
    assert page.page.evaluate(places) == before, 'nothing jumps'
    long = 'very ' * 40
    operated.values |= {'refusals': 1, 'rejected': long, 'rejected_instruction': long}
    operated.policy, operated.gate = ('STOPPED', long), ('FAULT', long)
    operated.tell_of_record('RECORDING', b'\0', long)
    operated.say('/vla/reasoning', f'Nothing {long}.')
    page.until(lambda: 'very' in page.text('#banner') and 'very' in page.text('#refused'),
               'long texts')
    assert page.page.evaluate(places) == before, 'nothing jumps'
    assert page.page.evaluate('document.documentElement.scrollHeight') <= 800

    graph.interrupt('operator')
    page.until(lambda: LOST in page.text('#banner'), 'the loss')
    assert page.text('#stop') == 'not connected' and not page.wrong
