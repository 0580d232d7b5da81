<?php
// A form: fields, and the size and sum of a file.
echo 'name=', $_POST['name'] ?? '-', "\n";
if (isset($_FILES['file'])) {
    echo $_FILES['file']['name'], ' ', $_FILES['file']['error'], ' ', $_FILES['file']['size'], ' ', md5_file($_FILES['file']['tmp_name']), "\n";
}
