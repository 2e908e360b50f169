"""The handler of the quickstart: greets whoever the event names."""


def handler(event):
    return f"Hello, {event['name']}!"
