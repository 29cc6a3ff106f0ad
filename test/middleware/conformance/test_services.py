"""Services, ready and absent."""

from __future__ import annotations

from typing import Any

from dtvla_ros.middleware import ros
from dtvla_ros.middleware.messages import SetBool, Trigger


def test_service_in_one_process(make_node: Any) -> None:
    server, caller = make_node('server'), make_node('caller')

    def answer(request: Any, response: Any) -> Any:
        response.success = True
        response.message = 'done'
        return response
    server.create_service(Trigger, 'go', answer)
    client = caller.create_client(Trigger, 'go')
    assert client.wait_for_service(timeout_sec=5.0)
    executor = ros.SingleThreadedExecutor()
    executor.add_node(server)
    executor.add_node(caller)
    future = client.call_async(Trigger.Request())
    done: list[Any] = []
    future.add_done_callback(lambda f: done.append(f.result().message))
    executor.spin_until_future_complete(future, timeout_sec=5.0)
    assert future.done()
    assert future.result().message == 'done'
    for _ in range(10):  # rclpy queues the callbacks of a future
        if not done:
            executor.spin_once(timeout_sec=0.1)
    assert done == ['done']
    executor.shutdown()
    assert not make_node('third').create_client(Trigger, 'nobody').wait_for_service(0.05)


def test_many_callers_get_their_own_answers(make_node: Any) -> None:
    server = make_node('server')

    def answer(request: Any, response: Any) -> Any:
        response.success = request.data
        return response
    server.create_service(SetBool, 'mirror', answer)
    callers = [make_node(f'caller_{index}') for index in range(3)]
    clients = [caller.create_client(SetBool, 'mirror') for caller in callers]
    executor = ros.SingleThreadedExecutor()
    for node in (server, *callers):
        executor.add_node(node)
    assert all(client.wait_for_service(timeout_sec=5.0) for client in clients)
    asked = [(value, client.call_async(SetBool.Request(data=value)))
             for value in (True, False, False) for client in clients]
    for value, future in asked:
        executor.spin_until_future_complete(future, timeout_sec=5.0)
        assert future.done()
        assert future.result().success is value
    executor.shutdown()


def test_a_service_that_goes_is_gone(make_node: Any, spin_until: Any) -> None:
    server, caller = make_node('server'), make_node('caller')
    service = server.create_service(Trigger, 'go', lambda request, response: response)
    client = caller.create_client(Trigger, 'go')
    assert client.wait_for_service(timeout_sec=5.0)
    server.destroy_service(service)
    assert spin_until(lambda: not client.service_is_ready(), server, caller)
