"""The course of a run through its data, against a walk over all its data steps."""

from dataclasses import replace

import pytest

from pretrain.data.course import Course, Size, Skip


def walked(course: Course, num_steps: int) -> list[range]:
    """Return the slots of the first optimizer steps, counted one data step after another."""
    taken, first, data_step = [], 0, course.start
    left_out = {step for skip in course.skipped for step in range(skip.first, skip.end)}
    while len(taken) < num_steps:
        size = [size.slots for size in course.sizes if size.step <= data_step][-1]
        if data_step not in left_out:
            taken.append(range(first, first + size))
        first, data_step = first + size, data_step + 1
    return taken


COURSES = [
    Course.constant(3),
    Course((Size(0, 2), Size(3, 5), Size(11, 4))),
    Course((Size(0, 3),), (Skip(2, 4), Skip(4, 5), Skip(9, 16))),
    Course((Size(0, 2), Size(3, 5), Size(11, 4)), (Skip(2, 4), Skip(8, 12))),
]


@pytest.mark.parametrize("course", COURSES)
def test_a_step_takes_what_a_walk_over_all_steps_comes_to(course):
    assert [course.slots(step) for step in range(24)] == walked(course, 24)


@pytest.mark.parametrize("start", [1, 3, 6, 30])
def test_the_data_begin_with_the_first_slot_at_the_start(start):
    course = Course((Size(0, 2), Size(3, 5), Size(11, 4)), (Skip(start + 4, start + 9),), start=start)
    assert [course.slots(step) for step in range(start, start + 24)] == walked(course, 24)


@pytest.mark.parametrize("course", [*COURSES, Course((Size(0, 2), Size(3, 5)), (Skip(6, 9),), start=4)])
def test_slots_are_counted_as_they_are_taken_also_before_the_start(course):
    sizes = list(map(len, walked(replace(course, start=0), 24)))
    assert [course.taken(step) for step in range(25)] == [sum(sizes[:step]) for step in range(25)]


def test_skipped_data_count_as_drawn():
    course = Course((Size(0, 3),), (Skip(2, 4),))
    assert [course.num_slots(step) for step in range(4)] == [0, 3, 12, 15]
    assert [course.data_step(step) for step in range(4)] == [0, 1, 4, 5]


def test_steps_before_a_skip_are_as_without_it():
    without, with_it = Course.constant(3), Course((Size(0, 3),), (Skip(7, 9),))
    assert [with_it.slots(step) for step in range(7)] == [without.slots(step) for step in range(7)]
    assert with_it.slots(7) == without.slots(9)
