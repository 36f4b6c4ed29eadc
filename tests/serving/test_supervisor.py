"""The connection's supervisor against a link that fails in every way, with real threads."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue

import numpy as np
import pytest

from common.program import OptionError, ProgramError
from serving.control_values import Arrival
from serving.link import LinkLost
from serving.messages import Chunk, FeatureReply, Instructions, Observation, ServingError
from serving.supervisor import Connection, ConnectionOptions
from tests.support import wait_until

ASKED = Instructions("builtin", "", state_names=("a.pos",))


class FakeLink:
    """A server that does what the test says; what it is asked is written down."""

    def __init__(self) -> None:
        self.begins = 0
        self.begin_fails: Exception | None = None
        self.begin_waits: threading.Event | None = None
        self.send_fails: Exception | None = None
        self.send_waits: threading.Event | None = None
        self.sent: list[Observation] = []
        self.answers: SimpleQueue[Chunk | FeatureReply | Exception] = SimpleQueue()
        self.closed = threading.Event()
        self.in_send = 0
        self.overlapped = False

    def begin(self, instructions: Instructions, timeout_s: float) -> None:
        assert instructions is ASKED
        self.begins += 1
        self.overlapped |= bool(self.in_send)
        if self.begin_waits is not None:
            while not self.begin_waits.wait(0.01):
                if self.closed.is_set():
                    raise LinkLost("closed")
        if self.begin_fails is not None:
            raise self.begin_fails

    def send(self, observation: Observation, timeout_s: float) -> None:
        self.in_send += 1
        try:
            if self.send_waits is not None and not self.send_waits.wait(timeout_s):
                raise LinkLost("not taken in time")
            if self.send_fails is not None:
                raise self.send_fails
            self.sent.append(observation)
        finally:
            self.in_send -= 1

    def receive(self, timeout_s: float) -> Chunk | FeatureReply | None:
        try:
            answer = self.answers.get(timeout=min(timeout_s, 0.02))
        except Empty:
            return None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        self.closed.set()


def observation(must_go: bool = True) -> Observation:
    return Observation(0, 1.0, must_go, np.zeros(1, np.float32))


CHUNK = Chunk(0, 1.0, np.zeros((2, 1), np.float32))
Start = Callable[..., tuple[FakeLink, Connection]]


@pytest.fixture
def started() -> Iterator[Start]:
    connections: list[Connection] = []

    def start(**options: float) -> tuple[FakeLink, Connection]:
        link = FakeLink()
        connection = Connection(link, ASKED, ConnectionOptions(**options))
        connections.append(connection)
        assert connection.begin(threading.Event())
        connection.start()
        return link, connection

    yield start
    for connection in connections:
        connection.close()
    names = {thread.name for thread in threading.enumerate()}
    assert not names & {"send", "receive"}, "a thread is left behind"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (LinkLost("10.0.0.9:8080 cannot be reached"), "no policy server: 10.0.0.9:8080 cannot"),
        (ServingError("bad_policy", "no policy type 'smolvl'"), "refuses: no policy type 'smolvl'"),
        (ServingError("not_found", "no such path: /x"), "refuses: no such path: /x"),
        (ServingError("not_allowed", "wrong token"), "refuses: wrong token"),
    ],
)
def test_a_start_that_fails_is_one_line_and_code_2(error: Exception, said: str) -> None:
    link = FakeLink()
    link.begin_fails = error
    connection = Connection(link, ASKED, ConnectionOptions())
    with pytest.raises(OptionError, match=said) as caught:
        connection.begin(threading.Event())
    assert caught.value.code == 2
    assert "\n" not in str(caught.value)
    assert (link.begins, connection.session, connection.state) == (1, None, "connecting")


def test_a_start_can_be_stopped_while_the_policy_loads() -> None:
    link = FakeLink()
    link.begin_waits = threading.Event()
    stop = threading.Event()
    stop.set()
    assert not Connection(link, ASKED, ConnectionOptions()).begin(stop)
    assert link.closed.is_set()


def test_observations_go_out_and_answers_come_in(started: Start) -> None:
    link, connection = started()
    assert (connection.session, connection.state, connection.free) == (1, "running", True)
    before = time.monotonic()
    connection.send(observation(), 1)
    wait_until(lambda: link.sent and connection.free, "the observation to be sent")
    link.answers.put(CHUNK)
    came: list = []
    wait_until(lambda: came.extend(connection.arrivals()) or came, "the answer")
    assert came[0].reply is CHUNK
    assert before <= came[0].at <= time.monotonic()


def test_while_one_is_on_its_way_out_there_is_no_place_for_another(started: Start) -> None:
    link, connection = started()
    link.send_waits = threading.Event()
    connection.send(observation(), 1)
    wait_until(lambda: link.in_send, "the sender")
    assert not connection.free
    link.send_waits.set()
    wait_until(lambda: connection.free, "the sender to be free again")


def refuse_send(link: FakeLink, connection: Connection, error: Exception) -> None:
    link.send_fails = error
    connection.send(observation(), connection.session or 0)


def refuse_receive(link: FakeLink, connection: Connection, error: Exception) -> None:
    link.answers.put(error)


@pytest.mark.parametrize("where", [refuse_send, refuse_receive])
@pytest.mark.parametrize(
    "error", [LinkLost("connection reset"), ServingError("no_session", "say Ready first")]
)
def test_a_lost_session_is_begun_anew(
    started: Start,
    where: Callable[[FakeLink, Connection, Exception], None],
    error: Exception,
    caplog: pytest.LogCaptureFixture,
) -> None:
    link, connection = started()
    link.begin_waits = threading.Event()
    where(link, connection, error)
    wait_until(lambda: connection.session is None, "the loss to be noticed")
    assert (connection.state, connection.free) == ("lost", False)
    assert str(error) in caplog.text
    link.send_fails = None
    link.begin_waits.set()
    wait_until(lambda: connection.session == 2, "a new session")
    assert link.begins == 2
    assert connection.failure is None


def test_it_tries_again_until_the_server_is_back(started: Start) -> None:
    link, connection = started()
    link.begin_fails = LinkLost("nobody there")
    link.answers.put(LinkLost("gone"))
    wait_until(lambda: link.begins >= 4, "three tries")
    link.begin_fails = ServingError("not_found", "the disk is not mounted yet")
    tried = link.begins
    wait_until(lambda: link.begins > tried, "a try that is refused")
    assert connection.session is None
    link.begin_fails = None
    wait_until(lambda: connection.session == 2, "a new session")


def test_it_gives_up_after_a_while_with_code_1(started: Start) -> None:
    link, connection = started(reconnect_timeout_s=0.5)
    link.begin_fails = LinkLost("nobody there")
    link.answers.put(LinkLost("gone"))
    wait_until(lambda: connection.failure is not None, "giving up")
    assert isinstance(connection.failure, ProgramError)
    assert connection.failure.code == 1
    assert "0.5 s (--reconnect_timeout): nobody there" in str(connection.failure)
    assert connection.session is None


def test_no_answer_to_what_must_go_is_a_loss(started: Start) -> None:
    _, connection = started(answer_timeout_s=0.3)
    connection.send(observation(must_go=True), 1)
    wait_until(lambda: connection.sessions == 2, "the silence to be noticed")


def test_what_the_server_may_leave_out_is_not_waited_for(started: Start) -> None:
    link, connection = started()
    connection.send(observation(must_go=False), 1)
    wait_until(lambda: link.sent, "the observation")
    assert connection._asked_at is None


@pytest.mark.parametrize("reply", [CHUNK, ServingError("timed_out", "the model hangs")])
def test_an_answer_or_a_refusal_ends_the_wait(started: Start, reply: Chunk | ServingError) -> None:
    link, connection = started()
    connection.send(observation(), 1)
    wait_until(lambda: link.sent, "the observation")
    assert connection._asked_at is not None
    link.answers.put(reply)
    wait_until(connection.arrivals, "the answer")
    assert connection._asked_at is None
    assert connection.session == 1


def test_an_observation_of_an_earlier_session_is_not_sent(started: Start) -> None:
    link, connection = started()
    link.answers.put(LinkLost("gone"))
    wait_until(lambda: connection.session == 2, "a new session")
    connection.send(observation(), 1)
    wait_until(lambda: connection.free, "the sender")
    assert not link.sent
    connection.send(observation(), 2)
    wait_until(lambda: link.sent, "one of this session")


def test_a_send_that_hangs_is_waited_for_before_connecting_again(started: Start) -> None:
    link, connection = started(send_timeout_s=0.5)
    link.send_waits = threading.Event()
    connection.send(observation(), 1)
    wait_until(lambda: link.in_send, "the sender")
    link.answers.put(LinkLost("gone"))
    wait_until(lambda: connection.session == 2, "a new session")
    assert not link.overlapped


def test_what_came_before_a_loss_is_not_handed_out_after_it(started: Start) -> None:
    link, connection = started()
    link.answers.put(CHUNK)
    link.answers.put(LinkLost("gone"))
    wait_until(lambda: connection.session == 2, "a new session")
    assert connection.arrivals() == []


def test_answers_that_nobody_takes_are_bounded(started: Start) -> None:
    link, connection = started()
    for number in range(200):
        link.answers.put(Chunk(number, 1.0, CHUNK.actions))
    wait_until(link.answers.empty, "all to be received")
    wait_until(lambda: connection._inbox[-1].reply.timestep == 199, "the newest")  # type: ignore
    assert len(connection.arrivals()) <= 16


def test_an_error_of_our_own_ends_the_program(started: Start) -> None:
    link, connection = started()
    link.answers.put(RuntimeError("a bug"))
    wait_until(lambda: connection.failure is not None, "the failure")
    assert connection.failure is not None and connection.failure.code == 1


def test_closing_is_quick_whatever_it_was_doing(started: Start) -> None:
    link, connection = started()
    link.begin_waits = threading.Event()
    link.answers.put(LinkLost("gone"))
    wait_until(lambda: link.begins == 2, "the second try")
    connection.close()
    connection.close()


def test_answers_may_be_thrown_away_while_they_are_taken(started: Start) -> None:
    class Emptied(deque[Arrival]):
        def popleft(self) -> Arrival:
            self.clear()  # as the thread does that begins a new session
            return super().popleft()

    _, connection = started()
    connection._inbox = Emptied([Arrival(CHUNK, 0.0)])
    assert connection.arrivals() == []
