"""What the policy node says of a thought while it is written."""

from std_msgs.msg import String

from dtvla_ros.nodes.vla_node import VlaNode
from dtvla_ros.ros import qos

LOWER = 'holding nothing done nothing now lower can at x50 y-17 next grasp move still still down'
PHRASES = ['Nothing in hand.', ' Lowering onto the can, 50 cm ahead and 17 cm to the right',
           '; then grasp.', ' Moving down.']


def test_a_thought_is_told_phrase_by_phrase_and_none_twice(graph):
    node = graph.join(VlaNode)
    graph.listen()
    graph.hear('stream', String, '/reasoning_stream', qos.NEWEST)
    graph.spin(lambda: node._writing.get_subscription_count(), 10)

    def write(text, request_id=node._request_id):
        heard = len(graph.of('stream'))
        words = text.split()
        for k in range(len(words) + 1):
            node._stream(request_id, ' '.join(words[:k]))
            graph.wait(0.05)
        return [message.data for _, message in graph.of('stream')[heard:]]
    grown = [''.join(PHRASES[:k]) for k in range(1, 5)]
    assert write(LOWER) == grown
    assert write(LOWER) == grown, 'another thought begins anew, though it is the same'
    assert write('It is there. Grasp it. Then') == ['It is there.', 'It is there. Grasp it.']
    assert write(LOWER, node._request_id - 1) == [], 'of a void decision nothing is said'
