"""Which view answers which path."""

from django.urls import path

from . import views

urlpatterns = [
    path("", views.index),
    path("form", views.form),
    path("upload", views.upload),
    path("session", views.session),
    path("stream", views.stream),
    path("release", views.release),
    path("events", views.events),
    path("left", views.left),
    path("fault", views.fault),
]
