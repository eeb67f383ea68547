"""What annotators handed in becomes a build: an import whose rows say which stage and which model they come from."""

from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa

from maskmill.pipeline.exchange.import_worker import ImportWorker
from maskmill.pipeline.exchange.importing import ImportJob
from maskmill.pipeline.plan import Unit
from maskmill.pipeline.worker import Rows
from maskmill.storage.sources import Item


@dataclass(frozen=True)
class RoundImportJob(ImportJob):
    """What its worker must know besides: `stage` (`assisted`, `semi`) and the id of the model that people had."""

    worker: str = "maskmill.pipeline.rounds.handed_in:RoundImportWorker"
    stage: str = ""
    made_with: str = ""


class RoundImportWorker(ImportWorker):
    """The columns `source` and `model` are the round's."""

    def __init__(self, job: RoundImportJob) -> None:
        super().__init__(job)
        self.columns = {"source": job.stage, "model": job.made_with}

    def image(self, unit: Unit, item: Item, patience: Callable[[float], None]) -> Rows:
        row, _, masks = super().image(unit, item, patience)
        for name, value in self.columns.items():
            place = masks.schema.get_field_index(name)
            column = pa.array([value] * masks.num_rows, masks.schema.field(name).type)
            masks = masks.set_column(place, masks.schema.field(name), column)
        return row, masks, masks
