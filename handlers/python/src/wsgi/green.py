"""Greenlets that answer requests.

A greenlet of its own takes requests from the queue of the receiving thread, which rings a pipe, and
gives each to a greenlet of a bounded pool: when that is full, requests wait in the queue.
"""


def gevent(bell, take, answer, size, watched, turned):
    """Answers requests in greenlets of gevent until ``take`` says that there will be no more."""
    from gevent import spawn as gevent_spawn
    from gevent.pool import Pool

    pool = Pool(size)
    if watched is not None:
        gevent_spawn(_watched, watched, turned, gevent_wait())
    _serve(bell, take, lambda job: pool.spawn(answer, job), gevent_wait())
    pool.join()


def eventlet(bell, take, answer, size, watched, turned):
    """The same in green threads of eventlet."""
    from eventlet import GreenPool
    from eventlet import spawn_n as eventlet_spawn

    pool = GreenPool(size)
    if watched is not None:
        eventlet_spawn(_watched, watched, turned, eventlet_wait())
    _serve(bell, take, lambda job: pool.spawn_n(answer, job), eventlet_wait())
    pool.waitall()


def gevent_wait():
    """What lets a greenlet wait until a descriptor is readable."""
    from gevent.socket import wait_read

    return wait_read


def eventlet_wait():
    """What lets a green thread wait until a descriptor is readable."""
    from eventlet.hubs import trampoline

    return lambda descriptor: trampoline(descriptor, read=True)


def _watched(bell, turned, wait):
    """Tells the watchdog that the loop turns, whatever requests wait for."""
    while True:
        wait(bell)
        turned()


def _serve(bell, take, spawn, wait):
    while True:
        # Silences the bell, and so is asked before each wait.
        jobs = take()
        if jobs is None:
            return
        for job in jobs:
            spawn(job)
        if not jobs:
            wait(bell)
